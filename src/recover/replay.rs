//! The archive replayed into the instance by being its replication source, until its gtid_executed equals the plan.

use std::{sync::Arc, time::Duration};

use anyhow::{anyhow, bail};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    binlog::gtid::GtidSet,
    source::{Feed, FeedProgress, Source},
    support::{
        clock,
        hint::{message, with_hint},
        progress::{Progress, human_bytes},
    },
};

use super::{instance::Instance, plan::Plan};

const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Once everything was sent, appliers that are idle and get nowhere for so long have lost something.
const STALL_PATIENCE: Duration = Duration::from_secs(120);

/// What the replay did.
#[derive(Debug, Clone)]
pub struct Replayed {
    pub transactions: u64,
    pub bytes: u64,
}

/// Replays what the plan says and the instance lacks; `held` is what it has.
pub async fn replay(
    instance: &mut Instance,
    plan: &Plan,
    held: &GtidSet,
    archive: &crate::archive::listing::Archive,
    progress: &Progress,
) -> anyhow::Result<Replayed> {
    let feed = Arc::new(Feed {
        archive: archive.clone(),
        legs: plan.legs.clone(),
        skipped: plan.skipped.clone(),
        server_uuid: Uuid::new_v4(),
        server_id: 1,
        server_version: plan.legs.last().map_or_else(
            || plan.snapshot.server_version.clone(),
            |l| l.binlog.opening.server_version.clone(),
        ),
        progress: FeedProgress::default(),
    });
    let source = Source::start(feed.clone()).await?;
    let session = &mut instance.session;
    session
        .execute(&source.change_source_statement())
        .await
        .map_err(|e| anyhow!("{}", hide_password(&message(&e))))?;
    session.execute("START REPLICA").await?;
    let total = plan.target_gtids.subtract(held).count();
    let (mut left_before, mut moved) = (u64::MAX, Instant::now());
    loop {
        let executed = instance.session.gtid_executed().await?;
        let left = plan.target_gtids.subtract(&executed).count();
        if left == 0 {
            break;
        }
        if let Some(e) = feed.progress.take_failure() {
            return Err(e.context("the replay met damage in the archive"));
        }
        instance.ensure_running()?;
        fail_on_replica_error(instance).await?;
        if left != left_before {
            (left_before, moved) = (left, Instant::now());
        } else if feed.progress.is_complete() && moved.elapsed() > STALL_PATIENCE {
            if is_applying(instance).await? {
                // One large transaction may take hours.
                moved = Instant::now();
                continue;
            }
            bail!(
                "the replay came to a standstill with {left} transactions missing: {}",
                plan.target_gtids.subtract(&executed)
            );
        }
        progress.update(|| {
            let at = clock::format_utc(feed.progress.commit_us());
            format!(
                "{} of {total} transactions, {} sent, at {at}",
                total - left,
                human_bytes(feed.progress.bytes())
            )
        });
        sleep(LOOK_INTERVAL).await;
    }
    instance.session.execute("STOP REPLICA").await?;
    instance.session.execute("RESET REPLICA ALL").await?;
    let executed = instance.session.gtid_executed().await?;
    if executed != plan.target_gtids {
        let more = executed.subtract(&plan.target_gtids);
        bail!("the server executed transactions that the plan does not name: {more}");
    }
    Ok(Replayed {
        transactions: total,
        bytes: feed.progress.bytes(),
    })
}

async fn is_applying(instance: &mut Instance) -> anyhow::Result<bool> {
    let sql = "SELECT COUNT(*) FROM performance_schema.replication_applier_status_by_worker WHERE applying_transaction <> ''";
    let (busy,): (u64,) = instance.session.one(sql).await?;
    Ok(busy > 0)
}

/// Nothing is skipped: the first transaction that cannot be applied ends the recovery and is named.
async fn fail_on_replica_error(instance: &mut Instance) -> anyhow::Result<()> {
    let sql = "SELECT last_error_number, last_error_message, applying_transaction FROM performance_schema.replication_applier_status_by_worker \
               WHERE last_error_number <> 0 \
               UNION ALL SELECT last_error_number, last_error_message, '' FROM performance_schema.replication_applier_status_by_coordinator \
               WHERE last_error_number <> 0";
    let rows: Vec<(u32, String, String)> = instance.session.rows(sql).await?;
    if let Some((number, message, transaction)) = rows.into_iter().next() {
        let e = anyhow!("the server could not apply transaction {transaction}: {message} (error {number})");
        return Err(with_hint(
            e,
            "recover to the moment before it, and look at what it does with `mysql-pitr search`",
        ));
    }
    let sql = "SELECT last_error_number, last_error_message FROM performance_schema.replication_connection_status \
               WHERE last_error_number <> 0 AND service_state = 'OFF'";
    let rows: Vec<(u32, String)> = instance.session.rows(sql).await?;
    match rows.into_iter().next() {
        None => Ok(()),
        Some((number, message)) => bail!("the server could not read the archive from this process: {message} (error {number})"),
    }
}

fn hide_password(text: &str) -> String {
    match text.split_once("SOURCE_PASSWORD='") {
        Some((before, after)) => format!(
            "{before}SOURCE_PASSWORD='…{}",
            after.split_once('\'').map_or("", |(_, rest)| rest)
        ),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_do_not_reach_an_error() {
        let hidden = hide_password("`CHANGE … SOURCE_PASSWORD='geheim', SOURCE_SSL=0` failed");
        assert_eq!(hidden, "`CHANGE … SOURCE_PASSWORD='…, SOURCE_SSL=0` failed");
    }
}
