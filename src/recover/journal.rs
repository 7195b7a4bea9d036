//! What a recovery set out to do and how far it came, stored in its working folder before anything depends on it: so that
//! the same command goes on where it was killed, and another one does not.

use std::{fs, io, path::Path};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    archive::listing::Archive,
    binlog::gtid::GtidSet,
    support::{clock, durable, hint::OrHint},
};

use super::{plan::Plan, verify::Verified};

pub const FILE: &str = "recovery.json";
const FORMAT: u32 = 1;
/// Another one after each start of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What shall be recovered, from what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub archive: String,
    pub shard: String,
    pub timeline: u32,
    pub snapshot: String,
    pub target_gtids: GtidSet,
    /// Which of them are to be empty.
    #[serde(default)]
    pub skipped: GtidSet,
}

impl Intent {
    pub fn of(archive: &Archive, plan: &Plan) -> Intent {
        Intent {
            archive: archive.store.url().to_string(),
            shard: archive.shard.to_string(),
            timeline: plan.path.last().id,
            snapshot: plan.snapshot.id.clone(),
            target_gtids: plan.target_gtids.clone(),
            skipped: plan.skipped.clone(),
        }
    }

    /// Whether whatever was replayed on the way to this is on the way to `other` too. `--latest` means more from one moment
    /// to the next.
    fn leads_to(&self, other: &Intent) -> bool {
        let same_but_for_the_end = Intent {
            target_gtids: other.target_gtids.clone(),
            ..self.clone()
        } == *other;
        same_but_for_the_end && self.target_gtids.is_subset(&other.target_gtids)
    }
}

/// The last step that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reached {
    Begun,
    /// The data folder is the snapshot, or the snapshot and a part of the replay. Of a snapshot of volumes: it came up, and was shut down.
    Unpacked,
    /// The planned set, shut down cleanly and flushed to disk.
    Replayed,
    /// Proven; the files may be moving.
    Verified,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Journal {
    format: u32,
    #[serde(flatten)]
    pub intent: Intent,
    /// Names what the recovery makes outside the target.
    pub id: Uuid,
    boot_id: String,
    pub begun_at: String,
    pub reached: Reached,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

impl Journal {
    pub fn begin(intent: Intent) -> anyhow::Result<Journal> {
        Ok(Journal {
            format: FORMAT,
            intent,
            id: Uuid::new_v4(),
            boot_id: boot_id()?,
            begun_at: clock::format_utc(clock::now_us()),
            reached: Reached::Begun,
            verified: None,
        })
    }

    /// None where a recovery was killed before it stored one.
    pub fn read(work: &Path) -> anyhow::Result<Option<Journal>> {
        let path = work.join(FILE);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let unreadable = || format!("{} is not a recovery's journal", path.display());
        let format: Format = serde_json::from_slice(&bytes).with_context(unreadable)?;
        if format.format > FORMAT {
            bail!("{} was written by a newer mysql-pitr", path.display());
        }
        Ok(Some(serde_json::from_slice(&bytes).with_context(unreadable)?))
    }

    pub fn write(&self, work: &Path) -> anyhow::Result<()> {
        let path = work.join(FILE);
        durable::write(&path, &serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
            .hint("make room on its volume, and start the same command again: it goes on where it was")
    }

    /// Takes up what another process left, for `intent`. Says what of it cannot be used, if so.
    ///
    /// # Errors
    /// Where it is a recovery of something else.
    pub fn take_up(&mut self, intent: Intent) -> anyhow::Result<Option<&'static str>> {
        let is_done = self.reached == Reached::Verified;
        if self.intent != intent && (is_done || !self.intent.leads_to(&intent)) {
            bail!("it is of snapshot {} to {}", self.intent.snapshot, self.intent.target_gtids);
        }
        if self.intent != intent {
            self.intent = intent;
            self.reached = self.reached.min(Reached::Unpacked);
        }
        let boot_id = boot_id()?;
        let mut lost = None;
        if self.boot_id != boot_id && self.reached == Reached::Unpacked {
            // Without doublewrite, and with files that nobody flushed, pages may be half written.
            self.reached = Reached::Begun;
            lost = Some(
                "the machine was started anew since: what it had written last may be lost, so the snapshot is unpacked again",
            );
        }
        self.boot_id = boot_id;
        Ok(lost)
    }
}

/// Whether the recovery in the working folder was replaying when the machine was started anew: pages may be half written.
pub fn was_torn(work: &Path) -> anyhow::Result<bool> {
    let left = Journal::read(work)?;
    let boot_id = boot_id()?;
    Ok(left.is_some_and(|j| j.reached == Reached::Unpacked && j.boot_id != boot_id))
}

fn boot_id() -> anyhow::Result<String> {
    let text = fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn intent(gtids: &str) -> Intent {
        Intent {
            archive: "file:///a".into(),
            shard: "s".into(),
            timeline: 1,
            snapshot: "one".into(),
            target_gtids: gtids.parse().unwrap(),
            skipped: GtidSet::new(),
        }
    }

    const TO_5: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5";
    const TO_9: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-9";

    fn reached(gtids: &str, reached: Reached) -> Journal {
        let mut journal = Journal::begin(intent(gtids)).unwrap();
        journal.reached = reached;
        journal
    }

    #[test]
    fn goes_on_with_the_same_and_with_more_of_the_same() {
        for at in [Reached::Begun, Reached::Unpacked, Reached::Replayed, Reached::Verified] {
            let mut journal = reached(TO_5, at);
            assert_eq!(journal.take_up(intent(TO_5)).unwrap(), None);
            assert_eq!(journal.reached, at);
        }
        let mut journal = reached(TO_5, Reached::Replayed);
        assert_eq!(journal.take_up(intent(TO_9)).unwrap(), None);
        assert_eq!((journal.reached, journal.intent), (Reached::Unpacked, intent(TO_9)));
    }

    #[test]
    fn something_else_is_refused() {
        let mut other = intent(TO_5);
        other.snapshot = "two".into();
        assert!(reached(TO_5, Reached::Unpacked).take_up(other).is_err());
        assert!(reached(TO_9, Reached::Unpacked).take_up(intent(TO_5)).is_err());
        // Its files may have moved.
        assert!(reached(TO_5, Reached::Verified).take_up(intent(TO_9)).is_err());
    }

    #[test]
    fn after_a_new_start_of_the_machine_only_what_was_flushed_counts() {
        for (before, after) in [
            (Reached::Unpacked, Reached::Begun),
            (Reached::Replayed, Reached::Replayed),
            (Reached::Verified, Reached::Verified),
        ] {
            let mut journal = reached(TO_5, before);
            journal.boot_id = "another".into();
            let lost = journal.take_up(intent(TO_5)).unwrap();
            assert_eq!((lost.is_some(), journal.reached), (before == Reached::Unpacked, after));
            assert_eq!(journal.boot_id, boot_id().unwrap());
        }
    }

    #[test]
    fn is_read_as_it_was_written_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Journal::read(dir.path()).unwrap().is_none());
        let mut journal = reached(TO_5, Reached::Replayed);
        journal.write(dir.path()).unwrap();
        let read = Journal::read(dir.path()).unwrap().unwrap();
        assert_eq!(
            (read.intent, read.reached, read.id),
            (intent(TO_5), Reached::Replayed, journal.id)
        );
        journal.format += 1;
        journal.write(dir.path()).unwrap();
        assert!(Journal::read(dir.path()).unwrap_err().to_string().contains("newer"));
    }
}
