//! What the replica no longer needs: each region deletes by its own rules, and what the other one has deleted is not behind.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use crate::{
    archive::{keys, listing::Archive, records::SnapshotState},
    store::ObjectMeta,
};

/// Nothing younger is deleted there because of a rule that keeps fewer snapshots; more than `prune` waits for at least.
const THINNED_AFTER_US: i64 = 25 * 3600 * 1_000_000;

/// What has to be known of a snapshot's record.
#[derive(Debug, Clone, Deserialize)]
struct Taken {
    state: SnapshotState,
    started_at_us: i64,
    finished_at_us: Option<i64>,
    #[serde(default)]
    data_key: Option<String>,
    #[serde(default)]
    stored_bytes: u64,
}

/// Records of the replica by key, with their sizes: a record that changes grows.
#[derive(Debug, Default)]
pub(super) struct Records(HashMap<String, (u64, Option<Taken>)>);

/// From where on the replica has to be like home.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cutoff {
    /// When the oldest snapshot that the replica holds whole was begun, by home's clock, and its id.
    oldest: Option<(i64, String)>,
    newest: Option<String>,
}

impl Cutoff {
    /// `home` and `there`: the snapshots' objects on both sides.
    ///
    /// # Errors
    /// Where the replica cannot be read.
    pub(super) async fn find(
        replica: &Archive,
        records: &mut Records,
        home: &[ObjectMeta],
        there: &BTreeMap<String, u64>,
    ) -> anyhow::Result<Cutoff> {
        let prefix = keys::snapshots_prefix(&replica.shard);
        let is_record = |key: &String| keys::snapshot_id(&prefix, key).is_some();
        records.0.retain(|key, (size, _)| there.get(key) == Some(size));
        let mut cutoff = Cutoff::default();
        for (key, size) in there.iter().filter(|(key, _)| is_record(key)) {
            if !records.0.contains_key(key) {
                // One that cannot be understood is no whole snapshot; the window of the replica names it.
                let taken = match replica.store.get(key).await {
                    Ok((bytes, _)) => serde_json::from_slice(&bytes).ok(),
                    Err(e) if e.is_not_found() => None,
                    Err(e) => return Err(e.into()),
                };
                records.0.insert(key.clone(), (*size, taken));
            }
            let Some((_, Some(taken))) = records.0.get(key) else {
                continue;
            };
            let data = taken.data_key.as_ref().filter(|data| data.starts_with(&prefix));
            let has_data = data.is_none_or(|data| there.get(data) == Some(&taken.stored_bytes));
            let Some(finished_us) = taken
                .finished_at_us
                .filter(|_| taken.state == SnapshotState::Complete && has_data)
            else {
                continue;
            };
            let id = keys::snapshot_id(&prefix, key).unwrap_or_default();
            if cutoff.oldest.is_none() {
                let at_home = home.iter().find(|o| o.key == *key).and_then(|o| o.modified_us);
                let finished_at_home_us = at_home.unwrap_or(finished_us);
                let began_us = finished_at_home_us - (finished_us - taken.started_at_us).max(0);
                // Those of volumes, which have no data here, are rewritten long after.
                let began_us = match data {
                    Some(_) => began_us,
                    None => began_us.min(taken.started_at_us),
                };
                cutoff.oldest = Some((began_us, id.clone()));
            }
            cutoff.newest = Some(id);
        }
        Ok(cutoff)
    }

    /// Whether a binlog that was last added to at `modified_us` is held by every snapshot there.
    pub(super) fn is_before(&self, modified_us: Option<i64>) -> bool {
        let oldest = self.oldest.as_ref();
        oldest.zip(modified_us).is_some_and(|((began_us, _), at)| at < *began_us)
    }

    /// Whether the replica may well do without this snapshot; `age_us`: of its object.
    pub(super) fn passes_over(&self, id: &str, age_us: i64) -> bool {
        match (&self.oldest, &self.newest) {
            (Some((_, oldest)), Some(newest)) => id < oldest.as_str() || id < newest.as_str() && age_us > THINNED_AFTER_US,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_passed_over_by_a_replica_without_a_snapshot() {
        let none = Cutoff::default();
        assert!(!none.is_before(Some(0)) && !none.passes_over("a", i64::MAX));
        let some = Cutoff {
            oldest: Some((100, "b".into())),
            newest: Some("d".into()),
        };
        assert!(some.is_before(Some(99)) && !some.is_before(Some(100)) && !some.is_before(None));
        assert!(some.passes_over("a", 0), "older than all of them");
        assert!(!some.passes_over("c", 0) && some.passes_over("c", THINNED_AFTER_US + 1));
        assert!(!some.passes_over("e", i64::MAX), "the newest is needed however old it is");
    }
}
