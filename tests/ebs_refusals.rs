//! What EC2 refuses, and what becomes of it: the real client, moto in several regions, and something in between that denies, throttles, lets
//! keys expire, pages, drops connections and cuts answers short. Everything but the lock, for which `ebs.rs` has a server.

use std::{collections::BTreeSet, fs, slice::from_ref};

use anyhow::bail;
use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};
use futures_util::future::join_all;
use mysql_pitr::{
    archive::records::{CopyState, SnapshotState, Step},
    snapshot::{take::new_id, volumes::onward::onward},
    support::{hint::render, progress::Progress},
    volume::{
        cloud::{Cause, CloudError, Order, Tags},
        disks::Shape,
    },
};

use crate::support::{
    ec2_world::{CREATE_LIMIT, RECOVERY_TAG, SECRET, World, order},
    golden::assert_error,
    moto::Moto,
};

/// Throttling spends what the SDK has for retries in a region, in all of this process: each test has regions of its own.
const REGIONS: [&str; 2] = ["eu-west-1", "eu-central-1"];
const NOISY: [&str; 2] = ["eu-west-2", "eu-north-1"];
const THROTTLED: [&str; 2] = ["us-west-2", "us-east-2"];
const PAGED: [&str; 2] = ["eu-west-3", "us-west-1"];
#[derive(Clone, PartialEq, Eq)]
enum Work {
    /// A snapshot of one volume, of several,
    One,
    Several,
    /// or one that is lost before its record says that it was begun.
    Lost,
    /// A volume from that snapshot, attached and given back.
    Volume(String),
}

/// What is done to EC2, each in its turn.
async fn attempt(world: &World, work: Work, begun: &mut Vec<String>) -> anyhow::Result<()> {
    let cloud = world.cloud.clone();
    let volumes = match work {
        Work::Volume(ref snapshot) => return world.volume(snapshot).await,
        Work::Several => &world.volumes[..],
        Work::One | Work::Lost => &world.volumes[..1],
    };
    for id in begun.iter() {
        let record = world.finish(cloud.as_ref(), id).await?;
        match (record.step, work == Work::Lost) {
            (Some(Step::Copied), false) | (Some(Step::Deleted), true) => return Ok(()),
            (Some(Step::Deleted), false) => {}
            _ => bail!("{record:?}"),
        }
    }
    begun.push(new_id());
    let id = begun.last().unwrap();
    match work {
        Work::Lost => drop(world.create(cloud.as_ref(), id, volumes).await?),
        _ => world.begin(cloud.as_ref(), id, volumes).await?,
    }
    let record = world.finish(cloud.as_ref(), id).await?;
    match &record.volumes[0].copies[1].failure {
        Some(failure) => bail!("{failure}"),
        None => Ok(()),
    }
}

/// Of docs/iam.md, which `policies.rs` holds to be what the sources call.
fn actions() -> BTreeSet<String> {
    let table = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/iam.md")).unwrap();
    let rows = table.lines().filter(|l| l.starts_with("| `") && !l.contains("(planned)"));
    let of_row = |row: &str| Some(row.split_once("`ec2:")?.1.split_once('`')?.0.to_owned());
    rows.filter_map(of_row).collect()
}

/// Each is named in the error, with what to allow; once it is allowed, what was begun is gone on with, and nothing is made twice.
#[tokio::test]
async fn every_action_that_is_denied_is_named_and_the_work_goes_on_once_it_is_allowed() {
    let moto = Moto::start();
    let world = World::start(&moto, REGIONS).await;
    let volume = Work::Volume(world.snapshot().await);
    let works = [
        ("DescribeVolumes", Work::One),
        ("CreateSnapshot", Work::One),
        ("DescribeSnapshots", Work::One),
        ("CopySnapshot", Work::One),
        ("DescribeInstances", Work::Several),
        ("CreateSnapshots", Work::Several),
        ("DeleteSnapshot", Work::Lost),
        ("CreateVolume", volume.clone()),
        ("AttachVolume", volume.clone()),
        ("DetachVolume", volume.clone()),
        ("DeleteVolume", volume),
    ];
    let tried: BTreeSet<String> = works.iter().map(|(action, _)| (*action).to_owned()).collect();
    assert_eq!(tried, actions(), "every action is denied in its turn");
    for (action, work) in works {
        let mut begun = Vec::new();
        world.front.deny(action);
        let e = attempt(&world, work.clone(), &mut begun).await.expect_err(action);
        world.front.allow(action);
        let said = render(&e);
        assert!(said.contains(&format!("ec2:{action} of ")), "{said}");
        assert!(said.contains(&format!("allow ec2:{action} on ")), "{said}");
        assert!(!said.contains(SECRET) && !said.contains("secret"), "{said}");
        assert_error(&format!("EC2: {action} is denied"), &said, &world.names());
        let gone_on = attempt(&world, work, &mut begun).await;
        gone_on.unwrap_or_else(|e| panic!("{action}: {}", render(&e)));
        world.assert_nothing_is_orphaned(action).await;
        assert_eq!(world.disks.find((RECOVERY_TAG, "r")).await.unwrap(), None, "{action}");
    }
}

/// What is asked for in the table below.
#[derive(Clone, Copy)]
enum Ask {
    Create,
    Copy,
    Find,
    Make,
}

impl Ask {
    fn action(self) -> &'static str {
        match self {
            Ask::Create => "CreateSnapshot",
            Ask::Copy => "CopySnapshot",
            Ask::Find => "DescribeSnapshots",
            Ask::Make => "CreateVolume",
        }
    }
}

/// Codes and texts as EC2 gives them. After each the same client goes on.
#[tokio::test]
async fn every_refusal_says_what_to_do() {
    const KMS: (&str, &str) = ("InvalidKMSKey.InvalidState", "The KMS key provided is in an incorrect state.");
    let cases = [
        ("the KMS key is disabled", Ask::Create, KMS, Cause::Refused),
        ("the KMS key is disabled, of a copy", Ask::Copy, KMS, Cause::Refused),
        ("the KMS key is disabled, of a volume", Ask::Make, KMS, Cause::Refused),
        (
            "the KMS key may not be used",
            Ask::Copy,
            ("InvalidParameterValue", "The specified KMS key is not accessible"),
            Cause::Refused,
        ),
        (
            "the clock is wrong, or the keys are",
            Ask::Create,
            ("AuthFailure", "AWS was not able to validate the provided access credentials"),
            Cause::Refused,
        ),
        (
            "the clock is ahead",
            Ask::Find,
            (
                "SignatureDoesNotMatch",
                "Signature not yet current: 20261121T101000Z is still later than 20261121T100000Z (20261121T095500Z + 5 min.)",
            ),
            Cause::Refused,
        ),
        (
            "the clock is far off",
            Ask::Make,
            (
                "RequestTimeTooSkewed",
                "The difference between the request time and the current time is too large.",
            ),
            Cause::Refused,
        ),
        (
            "the request has expired",
            Ask::Copy,
            ("RequestExpired", "Request has expired."),
            Cause::Refused,
        ),
        (
            "the credentials have expired",
            Ask::Make,
            ("ExpiredToken", "The security token included in the request is expired"),
            Cause::Refused,
        ),
        (
            "a volume's snapshots follow too fast",
            Ask::Create,
            (
                "SnapshotCreationPerVolumeRateExceeded",
                "The maximum per volume CreateSnapshot request rate has been exceeded. Use an increasing or variable sleep interval between requests.",
            ),
            Cause::Throttled,
        ),
        (
            "too many snapshots",
            Ask::Copy,
            (
                "ResourceLimitExceeded",
                "Too many snapshot copies in progress. The limit is 20 for this destination region.",
            ),
            Cause::Throttled,
        ),
        (
            "the region is not enabled",
            Ask::Find,
            (
                "OptInRequired",
                "You are not subscribed to this service. Please go to http://aws.amazon.com to subscribe.",
            ),
            Cause::Refused,
        ),
        (
            "the snapshot is gone",
            Ask::Copy,
            ("InvalidSnapshot.NotFound", "The snapshot does not exist."),
            Cause::Missing,
        ),
        (
            "the snapshot is gone, of a volume",
            Ask::Make,
            ("InvalidSnapshot.NotFound", "The snapshot does not exist."),
            Cause::Missing,
        ),
        (
            "no such zone",
            Ask::Make,
            ("InvalidZone.NotFound", "The zone 'eu-west-1z' does not exist."),
            Cause::Refused,
        ),
        (
            "too many volumes",
            Ask::Make,
            (
                "VolumeLimitExceeded",
                "You have exceeded your maximum gp3 storage limit of 50 TiB in this region.",
            ),
            Cause::Refused,
        ),
        (
            "a code that nobody knows",
            Ask::Create,
            ("Novelty", "This is new."),
            Cause::Refused,
        ),
    ];
    let moto = Moto::start();
    let world = World::start(&moto, REGIONS).await;
    let (cloud, disks) = (world.cloud.clone(), world.disks.clone());
    let (source, volume) = (world.snapshot().await, world.volumes[0].clone());
    let [home, away] = world.regions;
    let ask = async |ask: Ask| -> Result<(), (Option<Cause>, anyhow::Error)> {
        let told = |e: CloudError| (Some(e.cause), e.error);
        match ask {
            Ask::Create => {
                let subject = world.subject("table", from_ref(&volume));
                let made = cloud.create(&Order::One(volume.clone()), &subject, CREATE_LIMIT).await;
                made.map(drop).map_err(told)
            }
            Ask::Copy => cloud.copy(&source, away, &Tags::new()).await.map(drop).map_err(told),
            Ask::Find => cloud.find(home, "table").await.map(drop).map_err(told),
            Ask::Make => {
                let made = disks.create(order(&source, &Shape::default())).await;
                made.map(drop).map_err(|e| (None, e))
            }
        }
    };
    for (case, what, (code, message), cause) in cases {
        let calls = world.front.calls(what.action());
        world.front.refuse(what.action(), code, message);
        let (told, e) = ask(what).await.expect_err(case);
        world.front.allow(what.action());
        assert!(told.is_none_or(|told| told == cause), "{case}: {told:?}");
        assert_eq!(
            world.front.calls(what.action()),
            calls + 1,
            "{case}: what is refused is not repeated"
        );
        assert_error(&format!("EC2: {case}"), &render(&e), &world.names());
        ask(what).await.unwrap_or_else(|(_, e)| panic!("{case}: {}", render(&e)));
    }
}

/// Asynchronously, as where EC2 may not use a key: the snapshot is none; a copy is made anew, and what failed goes.
#[tokio::test]
async fn what_ends_in_error_is_deleted_and_made_anew() {
    const KMS: &str = "Given key ID is not accessible";
    let moto = Moto::start();
    let world = World::start(&moto, REGIONS).await;
    let ([home, away], cloud, volumes) = (world.regions, world.cloud.as_ref(), &world.volumes[..1]);
    for (why, said) in [("", "EC2 does not say why"), (KMS, KMS)] {
        let id = new_id();
        world.front.set_failing(home, why);
        world.begin(cloud, &id, volumes).await.unwrap();
        let record = world.finish(cloud, &id).await.unwrap();
        world.front.set_working(home);
        assert_eq!((record.state, record.step), (SnapshotState::Failed, Some(Step::Deleted)));
        let failure = record.failure.unwrap();
        assert!(failure.ends_with(said) && failure.contains(&volumes[0]), "{failure}");
        world.assert_nothing_is_orphaned(why).await;
    }
    let id = new_id();
    world.front.set_failing(away, KMS);
    world.begin(cloud, &id, volumes).await.unwrap();
    // Settled, copied, and looked at.
    for _ in 0..3 {
        onward(&world.archive, cloud, &id, &Progress::silent()).await.unwrap();
    }
    let record = world.record(&id).await;
    let copy = &record.volumes[0].copies[1];
    assert_eq!(
        (record.state, copy.state),
        (SnapshotState::Complete, CopyState::Failed),
        "{record:?}"
    );
    assert_eq!(copy.failure.as_deref(), Some(KMS));
    let calls = world.front.calls("CopySnapshot");
    world.front.set_working(away);
    let record = world.finish(cloud, &id).await.unwrap();
    assert_eq!(record.step, Some(Step::Copied), "{record:?}");
    assert_eq!(world.front.calls("CopySnapshot"), calls + 1);
    world.assert_nothing_is_orphaned("a copy").await;
}

/// Between any two steps: with fresh ones it goes on, and nothing was made twice.
#[tokio::test]
async fn credentials_that_expire_in_the_middle_stop_nothing_for_good() {
    const OLD: &str = "AKIDOLD";
    let moto = Moto::start();
    let world = World::start(&moto, REGIONS).await;
    let (old, fresh) = (world.cloud_of(OLD), world.cloud.as_ref());
    let (old, volumes) = (old.as_ref(), &world.volumes[..1]);
    let cases = [
        (
            "RequestExpired",
            "Request has expired.",
            "see that the credentials have not expired",
        ),
        (
            "ExpiredToken",
            "The security token included in the request is expired",
            "renew the credentials",
        ),
        (
            "AuthFailure",
            "AWS was not able to validate the provided access credentials",
            "check the access keys",
        ),
    ];
    for (code, message, hint) in cases {
        // Before it is known how far it is.
        let id = new_id();
        world.begin(old, &id, volumes).await.unwrap();
        let before = world.record(&id).await;
        world.front.expire(OLD, code, message);
        let said = render(&world.finish(old, &id).await.unwrap_err());
        assert!(
            said.contains(&format!("ec2:DescribeSnapshots of snapshots of {id}")),
            "{said}"
        );
        assert!(said.contains(hint), "{said}");
        assert_eq!(world.record(&id).await, before, "{code}");
        assert_eq!(world.finish(fresh, &id).await.unwrap().step, Some(Step::Copied), "{code}");

        // While it is copied.
        let id = new_id();
        world.front.renew(OLD);
        world.begin(old, &id, volumes).await.unwrap();
        onward(&world.archive, old, &id, &Progress::silent()).await.unwrap();
        assert_eq!(world.record(&id).await.step, Some(Step::Settled), "{code}");
        world.front.expire(OLD, code, message);
        let record = world.finish(old, &id).await.unwrap();
        let failure = record.volumes[0].copies[1].failure.clone().unwrap();
        assert!(
            record.state == SnapshotState::Complete && failure.contains(hint),
            "{record:?}"
        );
        assert_eq!(world.finish(fresh, &id).await.unwrap().step, Some(Step::Copied), "{code}");

        // While what was lost is deleted.
        let id = new_id();
        world.front.renew(OLD);
        world.create(old, &id, volumes).await.unwrap();
        world.front.expire(OLD, code, message);
        let said = render(&world.finish(old, &id).await.unwrap_err());
        assert!(said.contains(hint), "{said}");
        assert_eq!(world.record(&id).await.step, Some(Step::Deleting), "{code}");
        assert_eq!(world.finish(fresh, &id).await.unwrap().step, Some(Step::Deleted), "{code}");
        world.front.renew(OLD);
    }
    world.assert_nothing_is_orphaned("expired").await;
}

/// By seed: connections break before, in and after an answer, answers end early, EC2 throttles and fails, before it has done a thing and after.
#[tokio::test]
async fn whatever_is_lost_on_the_way_nothing_is_made_twice_or_orphaned() {
    const SEEDS: u64 = 4;
    const FAULTS: usize = 8;
    const LOOKS_MAX: u32 = 100;
    let moto = Moto::start();
    let run = async |seed: u64| {
        let world = World::start(&moto, NOISY).await;
        let cloud = world.cloud.clone();
        world.front.disturb(seed, FAULTS);
        let (mut ends, mut looks) = (Vec::new(), 0);
        // The last one meets no faults any more.
        loop {
            let (id, was_disturbed) = (new_id(), world.front.faults_left() > 0);
            let begun = world.begin(cloud.as_ref(), &id, &world.volumes).await;
            let record = loop {
                looks += 1;
                assert!(looks < LOOKS_MAX, "seed {seed}: {:?}", world.record(&id).await);
                match world.finish(cloud.as_ref(), &id).await {
                    Ok(record) if matches!(record.step, Some(Step::Copied | Step::Deleted)) => break record,
                    // Whoever has the turn looks again.
                    Ok(_) => {}
                    Err(e) => assert!(world.front.faults_left() < FAULTS, "seed {seed}: {}", render(&e)),
                }
            };
            assert!(
                begun.is_ok() || record.state == SnapshotState::Failed,
                "seed {seed}: {record:?}"
            );
            ends.push(record.state);
            if !was_disturbed {
                break;
            }
        }
        world.assert_nothing_is_orphaned(&format!("seed {seed}")).await;
        assert_eq!(ends.last(), Some(&SnapshotState::Complete), "seed {seed}");
        ends
    };
    let ends = join_all((0..SEEDS).map(run)).await.concat();
    assert!(ends.contains(&SnapshotState::Failed), "the seeds go both ways: {ends:?}");
}

/// Of one result, and every other one empty; and a list that ends early is an error, not a shorter list.
#[tokio::test]
async fn lists_come_in_pages() {
    let moto = Moto::start();
    let world = World::start(&moto, PAGED).await;
    let (cloud, disks) = (world.cloud.clone(), world.disks.clone());
    let mut made = BTreeSet::new();
    for volume in &world.volumes {
        let subject = world.subject("paged", from_ref(volume));
        for _ in 0..2 {
            let begun = cloud
                .create(&Order::One(volume.clone()), &subject, CREATE_LIMIT)
                .await
                .unwrap();
            made.extend(begun.into_iter().map(|m| m.snapshot_id));
        }
    }
    world.front.page(1);
    let calls = world.front.calls("DescribeSnapshots");
    let found = cloud.find(PAGED[0], "paged").await.unwrap();
    assert_eq!(found.into_iter().map(|m| m.snapshot_id).collect::<BTreeSet<_>>(), made);
    assert_eq!(world.front.calls("DescribeSnapshots"), calls + 8);
    world.front.cut_short("DescribeSnapshots", true);
    let e = cloud.find(PAGED[0], "paged").await.unwrap_err();
    assert_eq!(e.cause, Cause::Unanswered);
    assert!(render(&e.error).contains("the answer is cut short"), "{}", render(&e.error));

    // A volume by its tag, and a device name that none of the machine's has.
    let tag = Tag::builder().key(RECOVERY_TAG).value("r").build();
    let tags = TagSpecification::builder()
        .resource_type(ResourceType::Volume)
        .tags(tag)
        .build();
    let asked = world.ec2[0]
        .create_volume()
        .availability_zone(format!("{}a", PAGED[0]))
        .size(1)
        .tag_specifications(tags);
    let volume = asked.send().await.unwrap().volume_id.unwrap();
    assert_eq!(disks.find((RECOVERY_TAG, "r")).await.unwrap().as_ref(), Some(&volume));
    disks.attach(&volume).await.unwrap();
    let asked = world.front.bodies("AttachVolume").pop().unwrap();
    assert!(asked.contains("Device=%2Fdev%2Fsdh"), "{asked}");
}

/// For some time it is waited for; for ever it is an error that says so, in the end. Under the lock nothing is asked twice.
#[tokio::test]
async fn throttling_is_waited_for_and_not_for_ever() {
    const LIMIT: (&str, &str) = ("RequestLimitExceeded", "Request limit exceeded.");
    let moto = Moto::start();
    let world = World::start(&moto, THROTTLED).await;
    let (cloud, disks) = (world.cloud.clone(), world.disks.clone());
    let id = new_id();
    world.begin(cloud.as_ref(), &id, &world.volumes[..1]).await.unwrap();
    for action in ["DescribeSnapshots", "DescribeVolumes"] {
        world.front.refuse_times(action, LIMIT.0, LIMIT.1, Some(2));
    }
    let (found, facts) = tokio::join!(cloud.find(THROTTLED[0], &id), cloud.facts(&world.volumes));
    assert_eq!((found.unwrap().len(), facts.unwrap().len()), (1, 2));

    for action in ["DescribeSnapshots", "CreateSnapshot", "CreateVolume"] {
        world.front.refuse(action, LIMIT.0, LIMIT.1);
    }
    let calls = world.front.calls("CreateSnapshot");
    let order_of_one = Order::One(world.volumes[0].clone());
    let (subject, shape) = (world.subject("throttled", &world.volumes[..1]), Shape::default());
    let (found, created, made) = tokio::join!(
        cloud.find(THROTTLED[0], &id),
        cloud.create(&order_of_one, &subject, CREATE_LIMIT),
        disks.create(order("snap-0", &shape)),
    );
    let (found, created) = (found.unwrap_err(), created.unwrap_err());
    assert_eq!((found.cause, created.cause), (Cause::Throttled, Cause::Throttled));
    assert_eq!(world.front.calls("CreateSnapshot"), calls + 1, "once, under the lock");
    assert!(world.front.calls("CreateVolume") > 2, "not given up at once");
    assert_error("EC2: it throttles for ever", &render(&found.error), &world.names());
    assert_error(
        "EC2: it throttles for ever, a recovery",
        &render(&made.unwrap_err()),
        &world.names(),
    );
    for action in ["DescribeSnapshots", "CreateSnapshot", "CreateVolume"] {
        world.front.allow(action);
    }
    assert_eq!(world.finish(cloud.as_ref(), &id).await.unwrap().step, Some(Step::Copied));
}
