//! EC2's Query protocol: asked of moto, and done.

use std::{collections::BTreeMap, io, os::unix::fs::symlink, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header::AUTHORIZATION, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use rand::Rng;

use super::{Attached, Shared, Volume, World, link_name, xml};

/// Whoever gives up after so many has no patience with EC2.
const FAULTS_IN_A_ROW_MAX: u32 = 2;

/// What a request says.
pub type Form = BTreeMap<String, String>;

#[derive(Clone)]
pub struct Endpoint(pub Arc<Shared>);

pub fn router(endpoint: Endpoint) -> Router {
    Router::new().fallback(answer).with_state(endpoint)
}

/// By which moto knows the region; it checks no signature.
pub fn authorization(region: &str) -> String {
    format!("AWS4-HMAC-SHA256 Credential=AKIDTEST/20261121/{region}/ec2/aws4_request, SignedHeaders=host, Signature=0")
}

/// What becomes of a request.
enum Fate {
    Answered,
    /// Nobody is there.
    Dead,
    Refused(StatusCode, &'static str, String),
    /// It is done, and nobody hears of it.
    AnswerLost,
}

async fn answer(State(Endpoint(shared)): State<Endpoint>, headers: HeaderMap, body: Bytes) -> Response {
    let turn = shared.turn.lock().await;
    let form = parse(&String::from_utf8_lossy(&body));
    let action = form.get("Action").cloned().unwrap_or_default();
    let region = region_of(&headers);
    let fate = {
        let mut world = shared.world();
        world.asked.push((region.clone(), action.clone()));
        fate(&mut world, &region, &action, &form)
    };
    match fate {
        Fate::Dead => return broken_off(),
        Fate::Refused(status, code, message) => return error(status, code, &message),
        Fate::Answered | Fate::AnswerLost => {}
    }
    if let Some(known) = form.get("ClientToken").and_then(|t| shared.world().answers.get(t).cloned()) {
        return xml_answer(StatusCode::OK, known);
    }
    if let Err(why) = may_be_detached(&shared, &form, &action) {
        return error(StatusCode::BAD_REQUEST, "IncorrectState", &why);
    }
    let asked = shared.http.post(&shared.moto);
    let asked = asked.header("authorization", authorization(&region)).body(body);
    let answered = asked
        .header("content-type", "application/x-www-form-urlencoded")
        .send()
        .await
        .unwrap();
    let status = answered.status();
    let mut text = answered.text().await.unwrap();
    if status.is_success() {
        let (doing, what, said) = (shared.clone(), action.clone(), form.clone());
        text = tokio::task::spawn_blocking(move || act(&doing, &what, &said, text))
            .await
            .unwrap();
        shared.world().done.push((region, action.clone(), form));
    }
    drop(turn);
    if shared.world().behaviour.unanswered.contains(&action) {
        std::future::pending::<()>().await;
    }
    match fate {
        Fate::AnswerLost => broken_off(),
        _ => xml_answer(StatusCode::from_u16(status.as_u16()).unwrap(), text),
    }
}

fn fate(world: &mut World, region: &str, action: &str, form: &Form) -> Fate {
    if world.behaviour.dead.contains(region) {
        return Fate::Dead;
    }
    if world.behaviour.denied.contains(action) {
        let what = format!("You are not authorized to perform this operation. Operation: ec2:{action}");
        return Fate::Refused(StatusCode::FORBIDDEN, "UnauthorizedOperation", what);
    }
    if action == "AttachVolume"
        && let (Some(volume), Some(machine)) = (world.volumes.get(&form["VolumeId"]), world.machines.get(&form["InstanceId"]))
        && volume.zone != machine.zone
    {
        let what = format!(
            "The volume '{}' is not in the same availability zone as instance '{}'",
            form["VolumeId"], machine.id
        );
        return Fate::Refused(StatusCode::BAD_REQUEST, "InvalidVolume.ZoneMismatch", what);
    }
    if action == "AttachVolume" && world.volumes.get(&form["VolumeId"]).is_some_and(|v| v.attached.is_some()) {
        let what = format!("{} is already attached to an instance", form["VolumeId"]);
        return Fate::Refused(StatusCode::BAD_REQUEST, "VolumeInUse", what);
    }
    let Some(noise) = &mut world.behaviour.noise else {
        return Fate::Answered;
    };
    let fate = match noise.rng.random_range(0..noise.one_in) {
        0 => Fate::Refused(
            StatusCode::SERVICE_UNAVAILABLE,
            "RequestLimitExceeded",
            "Request limit exceeded.".into(),
        ),
        1 => Fate::Refused(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            "An internal error has occurred.".into(),
        ),
        2 => Fate::AnswerLost,
        _ => Fate::Answered,
    };
    if matches!(fate, Fate::Answered) || noise.faults_in_a_row >= FAULTS_IN_A_ROW_MAX {
        noise.faults_in_a_row = 0;
        return Fate::Answered;
    }
    noise.faults_in_a_row += 1;
    fate
}

/// EC2 waits for ever for a volume that is mounted; here that is an error at once.
fn may_be_detached(shared: &Shared, form: &Form, action: &str) -> Result<(), String> {
    if action != "DetachVolume" {
        return Ok(());
    }
    let mut world = shared.world();
    let Some(volume) = world.volumes.get_mut(&form["VolumeId"]) else {
        return Ok(());
    };
    if let Some(attached) = &volume.attached {
        shared.pool.detach(&attached.device)?;
        let _ = std::fs::remove_file(&attached.link);
        volume.attached = None;
    }
    Ok(())
}

/// Does what moto says that it did, and returns what is said of it.
fn act(shared: &Shared, action: &str, form: &Form, answer: String) -> String {
    let pool = &shared.pool;
    let mut world = shared.world();
    let looks = world.behaviour.looks_until_ready;
    let id = |name: &str| xml::text(&answer, name).unwrap_or_else(|| panic!("{answer}")).to_owned();
    match action {
        "CreateVolume" => {
            let volume = id("volumeId");
            match form.get("SnapshotId") {
                Some(snapshot) if pool.has(snapshot) => pool.copy(snapshot, &volume),
                Some(_) => {}
                None => pool.create(&volume, form["Size"].parse().unwrap()),
            }
            let new = Volume {
                zone: form["AvailabilityZone"].clone(),
                attached: None,
                looks_left: looks,
            };
            world.volumes.insert(volume, new);
            if let Some(token) = form.get("ClientToken") {
                world.answers.insert(token.clone(), answer.clone());
            }
        }
        "DeleteVolume" => {
            world.volumes.remove(&form["VolumeId"]);
            pool.remove(&form["VolumeId"]);
        }
        "AttachVolume" => attach(shared, &mut world, form),
        "CreateSnapshots" => {
            for item in xml::items(&answer, "snapshotSet") {
                let of = |name| xml::text(item, name).unwrap();
                take(shared, &mut world, of("volumeId"), of("snapshotId"), looks);
            }
        }
        "CreateSnapshot" => take(shared, &mut world, &form["VolumeId"], &id("snapshotId"), looks),
        "CopySnapshot" => take(shared, &mut world, &form["SourceSnapshotId"], &id("snapshotId"), looks),
        "DescribeVolumes" => return volumes_seen(&mut world, form, &answer),
        "DescribeSnapshots" => return snapshots_seen(&mut world, form, &answer),
        _ => {}
    }
    answer
}

fn take(shared: &Shared, world: &mut World, from: &str, snapshot: &str, looks: u32) {
    // Boot volumes have no blocks here.
    if shared.pool.has(from) {
        shared.pool.copy(from, snapshot);
    }
    world.snapshots.insert(snapshot.to_owned(), looks);
}

fn attach(shared: &Shared, world: &mut World, form: &Form) {
    let (id, machine) = (&form["VolumeId"], &world.machines[&form["InstanceId"]]);
    let link = machine.device_dir.join(link_name(id));
    let device = shared.pool.attach(id);
    if !world.behaviour.no_devices {
        symlink(&device, &link).unwrap();
    }
    let volume = world.volumes.get_mut(id).unwrap_or_else(|| panic!("{id} has no blocks"));
    volume.attached = Some(Attached { device, link });
}

fn volumes_seen(world: &mut World, form: &Form, answer: &str) -> String {
    let broken = world.behaviour.broken_volumes;
    let seen = xml::items(answer, "volumeSet").into_iter().map(|item| {
        let known = xml::text(item, "volumeId").and_then(|id| world.volumes.get_mut(id));
        match known {
            Some(volume) if volume.looks_left > 0 => {
                volume.looks_left -= 1;
                xml::with_text(item, "status", "creating")
            }
            Some(volume) if broken && volume.attached.is_none() => xml::with_text(item, "status", "error"),
            _ => item.to_owned(),
        }
    });
    let seen: Vec<String> = seen.collect();
    page(world, form, answer, "volumeSet", &seen)
}

fn snapshots_seen(world: &mut World, form: &Form, answer: &str) -> String {
    // moto gives the images' snapshots to every owner.
    let known = xml::items(answer, "snapshotSet").into_iter().filter_map(|item| {
        let left = world.snapshots.get_mut(xml::text(item, "snapshotId")?)?;
        if *left == 0 {
            return Some(item.to_owned());
        }
        *left -= 1;
        let pending = xml::with_text(item, "status", "pending");
        Some(xml::with_text(&pending, "progress", &format!("{}%", 99 / (*left + 1))))
    });
    let seen: Vec<String> = known.collect();
    page(world, form, answer, "snapshotSet", &seen)
}

fn page(world: &World, form: &Form, answer: &str, set: &str, items: &[String]) -> String {
    // What is asked for by its ids EC2 gives at once.
    let is_paged = !form
        .keys()
        .any(|k| k.starts_with("VolumeId.") || k.starts_with("SnapshotId."));
    let from: usize = form.get("NextToken").map_or(0, |t| t.parse().unwrap()).min(items.len());
    let until = world
        .behaviour
        .page_items
        .filter(|_| is_paged)
        .map_or(items.len(), |n| (from + n).min(items.len()));
    let next = (until < items.len()).then_some(until);
    xml::with_items(answer, set, &items[from..until], next)
}

fn region_of(headers: &HeaderMap) -> String {
    let scope = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let credential = scope.split("Credential=").nth(1).unwrap_or_default();
    credential.split('/').nth(2).unwrap_or_default().to_owned()
}

fn parse(form: &str) -> Form {
    let pairs = form.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(b) = rest.next() {
        match b {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                bytes.push(u8::from_str_radix(&String::from_utf8_lossy(&digits), 16).unwrap());
            }
            b => bytes.push(b),
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn xml_answer(status: StatusCode, text: String) -> Response {
    (status, [(CONTENT_TYPE, "text/xml;charset=UTF-8")], text).into_response()
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    let text = format!(
        "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
         <RequestID>stand-in</RequestID></Response>"
    );
    xml_answer(status, text)
}

/// The connection ends in the middle of the answer.
fn broken_off() -> Response {
    let broken = stream::once(async { Err::<Bytes, _>(io::Error::from(io::ErrorKind::ConnectionReset)) });
    Response::new(Body::from_stream(broken))
}
