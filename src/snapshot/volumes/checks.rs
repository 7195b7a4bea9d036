//! What `mysql-pitr check` asks before a snapshot of volumes has to.

use crate::{
    mysql::{
        preflight::{self, Check},
        query::Session,
    },
    support::hint::{hint_of, message},
    volume::ebs::{
        folders::folders,
        located::{Volume, locate},
    },
};

use super::{Settings, take::ensure_ours};

const VOLUMES: &str = "volumes";
const CREATE: &str = "create snapshots";
const DR_REGION: &str = "copies";
/// Nothing bears this name.
const NOBODY: &str = "check";

/// One line per question, up to the first that the others rest on.
pub async fn checks(settings: &Settings, session: &mut Session) -> anyhow::Result<Vec<Check>> {
    let mut checks = vec![preflight::lock_privileges(session).await?];
    let variables = session.variables().await?;
    let volumes = match locate(&folders(&variables), &settings.named, &settings.roots) {
        Ok(volumes) => volumes,
        Err(e) => {
            checks.push(failed(VOLUMES, &e));
            return Ok(checks);
        }
    };
    checks.push(Check::ok(
        VOLUMES,
        volumes.iter().map(describe).collect::<Vec<_>>().join("; "),
    ));
    checks.push(create(settings, &volumes).await.unwrap_or_else(|e| failed(CREATE, &e)));
    if let Some(region) = &settings.dr_region {
        // Whether a copy may be made is known when one is: there is nothing yet to copy.
        let reached = settings.cloud.find(region, NOBODY).await;
        checks.push(match reached {
            Ok(_) => Check::ok(DR_REGION, format!("{region} answers")),
            Err(e) => failed(DR_REGION, &e.into()),
        });
    }
    Ok(checks)
}

async fn create(settings: &Settings, volumes: &[Volume]) -> anyhow::Result<Check> {
    let ids: Vec<String> = volumes.iter().map(|v| v.volume_id.clone()).collect();
    let facts = settings.cloud.facts(&ids).await?;
    ensure_ours(settings.cloud.as_ref(), &facts).await?;
    let order = settings.cloud.order(&facts).await?;
    settings.cloud.rehearse(&order).await?;
    let gib: u64 = facts.iter().map(|f| u64::from(f.size_gib)).sum();
    Ok(Check::ok(
        CREATE,
        format!("allowed, {gib} GiB in {}", settings.cloud.home_region().await?),
    ))
}

fn failed(name: &'static str, e: &anyhow::Error) -> Check {
    Check::failed(
        name,
        message(e),
        hint_of(e).unwrap_or_else(|| "correct the [ebs] section".to_owned()),
    )
}

fn describe(volume: &Volume) -> String {
    let mut roles: Vec<String> = volume.holds.iter().map(|h| h.role.to_string()).collect();
    roles.dedup();
    format!(
        "{} at {} ({}): {}",
        volume.volume_id,
        volume.mount_point.display(),
        volume.filesystem,
        roles.join(", ")
    )
}
