//! Everything that the archive says of itself, read at once for a plan. One listing per kind of object; what is missing or cannot be
//! read is named, and stops only a plan that needs it.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use anyhow::anyhow;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::de::DeserializeOwned;
use tokio::join;

use crate::{
    binlog::gtid::GtidSet,
    support::hint::{hint_of, message, with_hint},
};

use super::{
    keys::{self, BinlogPlace},
    listing::{Archive, Form, GETS_IN_FLIGHT, StoredBinlog, covered_end},
    path,
    reader::DamagedSeal,
    records::{Manifest, Opening, Snapshot, Timeline},
};

const REPLICA_HINT: &str = "restore the object from the other region's bucket, or recover to a moment before it";

/// What an object that is at fault was to say something of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Timeline(u32),
    Snapshot(String),
    /// A binlog, and up to which byte its segments stand in for what is at fault; 0 where there are none.
    Binlog {
        place: BinlogPlace,
        segments_until: u64,
        /// What it holds by its manifest, where that can be read.
        holds: Option<GtidSet>,
    },
}

/// An object that is missing, damaged, or says something else than its key.
#[derive(Debug, Clone)]
pub struct Fault {
    pub subject: Subject,
    /// Names the object.
    pub what: String,
    pub hint: String,
}

impl Fault {
    fn new(subject: Subject, e: &anyhow::Error) -> Fault {
        Fault {
            subject,
            what: message(e),
            hint: hint_of(e).unwrap_or_else(|| REPLICA_HINT.to_owned()),
        }
    }

    /// Of a binlog that no segments stand in for.
    pub fn of_binlog(place: BinlogPlace, e: &anyhow::Error) -> Fault {
        Fault::of_replaced(place, 0, None, e)
    }

    /// Of a binlog whose segments, up to this byte, stand in for the object that `e` is about.
    pub fn of_replaced(place: BinlogPlace, segments_until: u64, holds: Option<GtidSet>, e: &anyhow::Error) -> Fault {
        let subject = Subject::Binlog {
            place,
            segments_until,
            holds,
        };
        Fault::new(subject, e)
    }

    /// What an error says of a sealed binlog's object, unless that is known already: then nothing that was not tried stands in for it.
    pub fn of_new_damage(e: &anyhow::Error, known: &[Fault]) -> Option<Fault> {
        let place = &DamagedSeal::of(e)?.place;
        let is_known = known.iter().any(|f| f.is_of_binlog(place));
        (!is_known).then(|| Fault::of_binlog(place.clone(), e))
    }

    fn is_of_binlog(&self, wanted: &BinlogPlace) -> bool {
        matches!(&self.subject, Subject::Binlog { place, .. } if place == wanted)
    }

    pub fn error(&self) -> anyhow::Error {
        with_hint(anyhow!("{}", self.what), self.hint.clone())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.subject {
            Subject::Binlog {
                place,
                segments_until: 1..,
                ..
            } => {
                write!(f, "; {place} is read from its segments instead")
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Survey {
    /// By id.
    pub timelines: Vec<Timeline>,
    /// By id, which is by time. Those of which [`Survey::fault_of_snapshot`] knows a fault cannot be unpacked.
    pub snapshots: Vec<Snapshot>,
    /// Thousands of manifests must not fill the memory: they name no tables here, and leave to the opening what that says.
    pub binlogs: Vec<StoredBinlog>,
    pub faults: Vec<Fault>,
}

impl Survey {
    pub fn fault_of_snapshot(&self, id: &str) -> Option<&Fault> {
        self.faults
            .iter()
            .find(|f| matches!(&f.subject, Subject::Snapshot(of) if of == id))
    }

    /// What keeps the current timeline from being known: a later one may be.
    pub fn fault_of_tip(&self) -> Option<&Fault> {
        let tip = path::tip(&self.timelines).map_or(0, |t| t.id);
        let mut faults = self.faults.iter();
        faults.find(|f| matches!(f.subject, Subject::Timeline(id) if id > tip))
    }

    pub fn fault_of_binlog(&self, wanted: &BinlogPlace) -> Option<&Fault> {
        self.faults.iter().find(|f| f.is_of_binlog(wanted))
    }
}

impl Archive {
    /// # Errors
    /// Where the store fails, or where the archive was written by a newer program.
    pub async fn survey(&self) -> anyhow::Result<Survey> {
        self.survey_without(&[]).await
    }

    /// The same, as if these sealed binlogs' objects were not there: only reading them told that they are damaged.
    pub async fn survey_without(&self, damaged: &[Fault]) -> anyhow::Result<Survey> {
        let mut faults = Vec::new();
        let (timelines, snapshots, sealed) = join!(self.survey_timelines(), self.survey_snapshots(), self.survey_sealed(damaged));
        // Of several failures always the same one is told.
        let (timelines, snapshots, (mut binlogs, unsealed)) = (timelines?, snapshots?, sealed?);
        faults.extend(timelines.1);
        faults.extend(snapshots.1);
        let (tails, tail_faults) = self.survey_tails(&binlogs, unsealed).await?;
        faults.extend(tail_faults);
        let by_segments: HashSet<&BinlogPlace> = tails.iter().map(StoredBinlog::place).collect();
        binlogs.retain(|b| !by_segments.contains(b.place()));
        binlogs.extend(tails);
        Ok(Survey {
            timelines: timelines.0,
            snapshots: snapshots.0,
            binlogs,
            faults,
        })
    }

    /// The sealed binlogs behind manifests of [`Archive::sealed_index`]; those that cannot be read are named, and left out.
    pub async fn readable_sealed<'k>(
        &self,
        manifest_keys: impl Iterator<Item = &'k String>,
    ) -> anyhow::Result<(Vec<StoredBinlog>, Vec<Fault>)> {
        let key_of = |m: &Manifest| m.opening.place.manifest_key(&self.shard, m.codec);
        let stored = |m: Manifest| StoredBinlog {
            opening: m.opening.clone(),
            form: Form::Sealed(Box::new(m)),
        };
        let records = self.read_all(manifest_keys.cloned().collect(), key_of, stored).await?;
        let (mut sealed, mut faults) = (Vec::new(), Vec::new());
        for (key, record) in records {
            match (record, keys::parse_manifest_key(&key)) {
                (Ok(binlog), _) => sealed.push(binlog),
                (Err(e), Some(place)) => faults.push(Fault::of_binlog(place, &e)),
                (Err(e), None) => return Err(e),
            }
        }
        Ok((sealed, faults))
    }

    /// As [`Archive::tails_where`]; those of which the opening cannot be read are named, and left out.
    pub async fn readable_tails(&self, wanted: impl Fn(&BinlogPlace) -> bool) -> anyhow::Result<(Vec<StoredBinlog>, Vec<Fault>)> {
        let mut objects = self.tail_objects().await?;
        objects.retain(|place, (opened, _)| *opened && wanted(place));
        let keys = objects.keys().map(|place| place.opening_key(&self.shard)).collect();
        let records = self
            .read_all(keys, |o: &Opening| o.place.opening_key(&self.shard), |o| o)
            .await?;
        let (mut tails, mut faults) = (Vec::new(), Vec::new());
        for ((place, (_, segments)), (_, record)) in objects.into_iter().zip(records) {
            match record {
                Ok(opening) => tails.push(StoredBinlog {
                    opening,
                    form: Form::Tail(segments),
                }),
                Err(e) => faults.push(Fault::of_binlog(place, &e)),
            }
        }
        Ok((tails, faults))
    }

    /// The snapshots' records; those that cannot be read are named, and left out. Whether their data are there is not looked at.
    pub async fn readable_snapshots(&self) -> anyhow::Result<(Vec<Snapshot>, Vec<Fault>)> {
        let prefix = keys::snapshots_prefix(&self.shard);
        let id = |key: &str| keys::snapshot_id(&prefix, key);
        let objects = self.store.list(&prefix, None).await?;
        let keys = objects.into_iter().map(|o| o.key).filter(|key| id(key).is_some()).collect();
        let records = self
            .read_all(keys, |s: &Snapshot| keys::snapshot_key(&self.shard, &s.id), |s| s)
            .await?;
        Ok(divided(records, |key| Subject::Snapshot(id(key).unwrap_or_default())))
    }

    async fn survey_timelines(&self) -> anyhow::Result<(Vec<Timeline>, Vec<Fault>)> {
        let prefix = keys::timelines_prefix(&self.shard);
        let keys: Vec<String> = self.store.list(&prefix, None).await?.into_iter().map(|o| o.key).collect();
        let id = |key: &str| key.strip_prefix(&prefix)?.strip_suffix(".json")?.parse().ok();
        let keys: Vec<String> = keys.into_iter().filter(|key| id(key).is_some()).collect();
        let records = self
            .read_all(keys, |t: &Timeline| keys::timeline_key(&self.shard, t.id), |t| t)
            .await?;
        Ok(divided(records, |key| Subject::Timeline(id(key).unwrap_or_default())))
    }

    async fn survey_snapshots(&self) -> anyhow::Result<(Vec<Snapshot>, Vec<Fault>)> {
        let prefix = keys::snapshots_prefix(&self.shard);
        let objects = self.store.list(&prefix, None).await?;
        let id = |key: &str| keys::snapshot_id(&prefix, key);
        let keys = objects
            .iter()
            .filter(|o| id(&o.key).is_some())
            .map(|o| o.key.clone())
            .collect();
        let records = self
            .read_all(keys, |s: &Snapshot| keys::snapshot_key(&self.shard, &s.id), |s| s)
            .await?;
        let (snapshots, mut faults) = divided(records, |key| Subject::Snapshot(id(key).unwrap_or_default()));
        for snapshot in snapshots.iter().filter(|s| s.gtids_after.is_some()) {
            let fault = if !snapshot.provider.stores_data() {
                None
            } else if snapshot.data_key.starts_with(&prefix) {
                let size = objects.iter().find(|o| o.key == snapshot.data_key).map(|o| o.size_bytes);
                self.size_fault(&snapshot.data_key, snapshot.stored_bytes, size).await?
            } else {
                let (key, data) = (keys::snapshot_key(&self.shard, &snapshot.id), &snapshot.data_key);
                Some(anyhow!(
                    "object {}/{key} belongs to another shard: its data is {data}",
                    self.store.url()
                ))
                .map(|e| with_hint(e, "check shard and [store] url in the configuration"))
            };
            faults.extend(fault.map(|e| Fault::new(Subject::Snapshot(snapshot.id.clone()), &e)));
        }
        Ok((snapshots, faults))
    }

    /// The sealed binlogs, and what is at fault with some: their objects, or their manifests.
    async fn survey_sealed(&self, damaged: &[Fault]) -> anyhow::Result<(Vec<StoredBinlog>, Vec<(BinlogPlace, anyhow::Error)>)> {
        let objects = self.store.list(&keys::sealed_prefix(&self.shard), None).await?;
        let manifests = objects
            .iter()
            .map(|o| &o.key)
            .filter(|key| keys::parse_manifest_key(key).is_some());
        let sizes: HashMap<&str, u64> = objects.iter().map(|o| (o.key.as_str(), o.size_bytes)).collect();
        let slim = |mut m: Manifest| {
            m.tables.clear();
            let opening = m.opening.clone();
            // Once is enough.
            m.opening.held_before = GtidSet::new();
            m.opening.fingerprint.clear();
            StoredBinlog {
                opening,
                form: Form::Sealed(Box::new(m)),
            }
        };
        let key_of = |m: &Manifest| m.opening.place.manifest_key(&self.shard, m.codec);
        let records = self.read_all(manifests.cloned().collect(), key_of, slim).await?;
        let (mut sealed, mut unsealed) = (Vec::new(), Vec::new());
        for (key, record) in records {
            match record {
                Ok(binlog) => {
                    let object = key.strip_suffix(keys::MANIFEST_SUFFIX).unwrap_or(&key);
                    let fault = match damaged.iter().find(|f| f.is_of_binlog(binlog.place())) {
                        Some(fault) => Some(fault.error()),
                        None => {
                            let size = sizes.get(object).copied();
                            self.size_fault(object, binlog.stored_bytes(), size).await?
                        }
                    };
                    unsealed.extend(fault.map(|e| (binlog.place().clone(), e)));
                    sealed.push(binlog);
                }
                Err(e) => unsealed.extend(keys::parse_manifest_key(&key).map(|place| (place, e))),
            }
        }
        Ok((sealed, unsealed))
    }

    /// What is at fault with an object that a record speaks of. One that the listing lacks may have been stored, and its record after it,
    /// while the listing went on: it is looked for again.
    async fn size_fault(&self, key: &str, expected: u64, listed: Option<u64>) -> anyhow::Result<Option<anyhow::Error>> {
        let found = match listed {
            Some(size) => Some(size),
            None => {
                let again = self.store.list(key, None).await?;
                again.iter().find(|o| o.key == key).map(|o| o.size_bytes)
            }
        };
        let url = self.store.url();
        Ok(match found {
            Some(found) if found == expected => None,
            Some(found) => Some(anyhow!("object {url}/{key} has {found} B instead of {expected} B")),
            None => Some(anyhow!("there is no object {url}/{key}")),
        })
    }

    /// The binlogs that are to be read from their segments: those that are not sealed, and those of which the sealed form is at fault.
    async fn survey_tails(
        &self,
        sealed: &[StoredBinlog],
        unsealed: Vec<(BinlogPlace, anyhow::Error)>,
    ) -> anyhow::Result<(Vec<StoredBinlog>, Vec<Fault>)> {
        let whole: HashMap<&BinlogPlace, &StoredBinlog> = sealed.iter().map(|b| (b.place(), b)).collect();
        let holds = |place: &BinlogPlace| whole.get(place).and_then(|b| b.gtids()).cloned();
        let mut unsealed: HashMap<BinlogPlace, anyhow::Error> = unsealed.into_iter().collect();
        let is_needed = |place: &BinlogPlace| !whole.contains_key(place) || unsealed.contains_key(place);
        let tails = self.tail_objects_where(is_needed).await?;
        let (mut found, mut faults) = (Vec::new(), Vec::new());
        let opened = tails.iter().filter(|(_, (opened, _))| *opened);
        let keys: Vec<String> = opened.map(|(place, _)| place.opening_key(&self.shard)).collect();
        let records = self
            .read_all(keys, |o: &Opening| o.place.opening_key(&self.shard), |o| o)
            .await?;
        let mut openings: HashMap<String, anyhow::Result<Opening>> = records.into_iter().collect();
        for (place, (_, segments)) in tails {
            let key = place.opening_key(&self.shard);
            let missing = || {
                let e = anyhow!(
                    "there is no object {}/{key}, without which the segments beside it cannot be placed",
                    self.store.url()
                );
                Err(with_hint(e, REPLICA_HINT))
            };
            let sealed_fault = unsealed.remove(&place);
            let mut segments_until = covered_end(&segments);
            let opening_fault = match openings.remove(&key).unwrap_or_else(missing) {
                Ok(opening) => {
                    let form = Form::Tail(segments);
                    found.push(StoredBinlog { opening, form });
                    None
                }
                Err(e) => {
                    segments_until = 0;
                    Some(e)
                }
            };
            // Where both are at fault, the sealed form is the one to restore.
            if let Some(e) = sealed_fault.or(opening_fault) {
                let holds = holds(&place);
                faults.push(Fault::of_replaced(place, segments_until, holds, &e));
            }
        }
        faults.extend(unsealed.into_iter().map(|(place, e)| Fault::of_binlog(place, &e)));
        Ok((found, faults))
    }

    /// Records in the order of their keys, as `keep` leaves them; of each that is at fault the error.
    async fn read_all<T: DeserializeOwned, K>(
        &self,
        keys: Vec<String>,
        key_of: impl Fn(&T) -> String,
        keep: impl Fn(T) -> K,
    ) -> anyhow::Result<Vec<(String, anyhow::Result<K>)>> {
        let (key_of, keep) = (&key_of, &keep);
        let fetch = keys.into_iter().map(|key| async move {
            let bytes = match self.store.get(&key).await {
                Ok((bytes, _)) => bytes,
                Err(e) if e.is_not_found() => return Ok((key, Err(e.into()))),
                Err(e) => return Err(e.into()),
            };
            let record = self.parse::<T>(&key, &bytes)?.and_then(|record| {
                if key_of(&record) == key {
                    return Ok(keep(record));
                }
                let e = anyhow!("object {}/{key} holds what belongs under another key", self.store.url());
                Err(with_hint(e, self.record_hint(&key)))
            });
            Ok::<_, anyhow::Error>((key, record))
        });
        stream::iter(fetch).buffered(GETS_IN_FLIGHT).try_collect().await
    }
}

fn divided<T>(records: Vec<(String, anyhow::Result<T>)>, subject: impl Fn(&str) -> Subject) -> (Vec<T>, Vec<Fault>) {
    let (mut good, mut faults) = (Vec::new(), Vec::new());
    for (key, record) in records {
        match record {
            Ok(record) => good.push(record),
            Err(e) => faults.push(Fault::new(subject(&key), &e)),
        }
    }
    (good, faults)
}
