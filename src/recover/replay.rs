//! The archive replayed into the instance by being its replication source, until its gtid_executed equals the plan.

use std::{sync::Arc, time::Duration};

use anyhow::{anyhow, bail};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::{
    binlog::gtid::GtidSet,
    source::{Feed, FeedProgress, Source},
    support::{hint::message, progress::Progress},
};

use super::{
    applier::{applied_us, fail_on_error, is_applying},
    instance::Instance,
    pace::{Pace, Position},
    plan::Plan,
};

const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Before the error log is read for why nothing moves.
const DISK_PATIENCE: Duration = Duration::from_secs(5);
/// Once everything was sent, appliers that are idle and get nowhere for so long have lost something.
const STALL_PATIENCE: Duration = Duration::from_secs(120);

/// What the replay did.
#[derive(Debug, Clone, Default)]
pub struct Replayed {
    pub transactions: u64,
    pub bytes: u64,
}

/// Replays what the plan says and the instance lacks; `held` is what it has. Tells `warn` what a person should know.
pub async fn replay(
    instance: &mut Instance,
    plan: &Plan,
    held: &GtidSet,
    archive: &crate::archive::listing::Archive,
    progress: &Progress,
    mut warn: impl FnMut(String),
) -> anyhow::Result<Replayed> {
    let feed = Arc::new(Feed {
        archive: archive.clone(),
        legs: plan.legs.clone().into(),
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
    let mut pace = Pace::new(total, plan.last.as_ref().map(|stop| stop.commit_us));
    let (mut left_before, mut moved, mut told) = (u64::MAX, Instant::now(), Instant::now());
    loop {
        feed.progress.take_warnings().into_iter().for_each(&mut warn);
        let executed = instance.session.gtid_executed().await?;
        let left = plan.target_gtids.subtract(&executed).count();
        if left == 0 {
            break;
        }
        if let Some(e) = feed.progress.take_failure() {
            return Err(e.context("the replay met damage in the archive"));
        }
        instance.ensure_running()?;
        fail_on_error(&mut instance.session, archive, &plan.legs).await?;
        if left != left_before {
            (left_before, moved) = (left, Instant::now());
        } else if moved.elapsed() > DISK_PATIENCE {
            fail_on_full_disk(instance)?;
        }
        if feed.progress.is_complete() && moved.elapsed() > STALL_PATIENCE {
            if !is_applying(&mut instance.session).await? {
                bail!(
                    "the replay came to a standstill with {left} transactions missing: {}",
                    plan.target_gtids.subtract(&executed)
                );
            }
            // One large transaction may take hours.
            moved = Instant::now();
        }
        pace.look(Instant::now().into_std(), total - left);
        if told.elapsed() > TELL_INTERVAL {
            told = Instant::now();
            let at = Position {
                transactions: total - left,
                bytes: feed.progress.bytes(),
                applied_us: applied_us(&mut instance.session).await?,
            };
            progress.update(|| pace.tell(at));
        }
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

/// The server waits for room by itself, for ever, where it cannot write what it receives.
fn fail_on_full_disk(instance: &Instance) -> anyhow::Result<()> {
    const WORDS: [&str; 2] = ["No space left on device", "Disk is full"];
    let log = instance.log_end();
    match log.lines().find(|line| WORDS.iter().any(|words| line.contains(words))) {
        Some(line) => bail!("the server cannot write: {line}"),
        None => Ok(()),
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
