//! Servers that do not keep S3's word about conditions.
//!
//! AWS is believed. Of any other server the first conditional write of a process finds out, on an object of its own (whose name begins
//! with a dot, so that no listing of ours shows it):
//!
//! - **`If-None-Match` is ignored** (Garage): everything is refused. Two servers that claim one timeline would both be told that they won, and
//!   objects that can only be read and written cannot decide between two writers, in whatever order they do it: there is no way around.
//! - **`If-Match` is ignored, or fails always** (Ceph): whoever replaces an object first takes the turn to replace this very version of it, by
//!   creating an object whose name says so, sees that the version is still the current one, and then writes without a condition. One alone
//!   gets the turn. If its holder dies before it writes, the version stays the current one for [`TURN_TERM`], and then the next turn can
//!   be taken. Only a write that was on its way for longer than that could undo another's. Turns stay; they are tiny, and as many as
//!   replacements.

use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::sync::OnceCell;
use tracing::warn;

use super::{Bucket, Call, Condition};
use crate::{
    store::{Put, StoreError, Version, options::StorageClass},
    support::clock,
};

/// In the folder that is the key's first part: rights may end there.
const PROBE: &str = ".mysql-pitr-conditions";
const TURNS: &str = ".mysql-pitr-turns";
/// No object's: that of a probe is the digest of its content.
const NOBODYS_ETAG: &str = "\"00000000000000000000000000000000\"";
/// No request is on its way for so long, however far apart the clocks of this machine and of the store are.
const TURN_TERM: Duration = Duration::from_hours(1);

/// What is known of the server.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    /// Whether it is not AWS.
    pub in_doubt: bool,
    /// The name of the probe, once it is known that objects are created once.
    creations: OnceCell<String>,
    replacements: OnceCell<Replacements>,
}

#[derive(Debug, Clone, Copy)]
enum Replacements {
    ByServer,
    /// And why not by the server.
    InTurns(&'static str),
}

impl Conditions {
    pub(super) fn new(in_doubt: bool) -> Self {
        Conditions {
            in_doubt,
            ..Conditions::default()
        }
    }
}

fn beside(key: &str, name: &str) -> String {
    match key.split_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name.to_owned(),
    }
}

impl Bucket {
    /// Refuses to create anything where `If-None-Match` is ignored.
    pub(super) async fn ensure_creations(&self, key: &str) -> Result<(), StoreError> {
        if self.conditions.in_doubt {
            self.creations(key).await?;
        }
        Ok(())
    }

    async fn creations(&self, key: &str) -> Result<&str, StoreError> {
        let find_out = || async {
            let (call, name) = (Call::put(key, &Put::IfAbsent), beside(key, PROBE));
            // Of two creations the second one finds the object. Once it is there, the first.
            for _ in 0..2 {
                match self
                    .write(
                        &call,
                        &name,
                        Bytes::from_static(b"probe"),
                        Condition::Absent,
                        StorageClass::Standard,
                    )
                    .await
                {
                    Err(StoreError::AlreadyExists { .. }) => return Ok(name),
                    Err(e) => return Err(e),
                    Ok(_) => {}
                }
            }
            Err(StoreError::Refused {
                url: self.url.clone(),
                operation: format!("put {key}"),
                reason:
                    "the server ignores If-None-Match: two primaries could both claim one timeline; use a store that honours it"
                        .into(),
            })
        };
        self.conditions.creations.get_or_try_init(find_out).await.map(String::as_str)
    }

    async fn replacements(&self, key: &str) -> Result<Replacements, StoreError> {
        if !self.conditions.in_doubt {
            return Ok(Replacements::ByServer);
        }
        let find_out = || async {
            let probe = self.creations(key).await?;
            let call = Call::put(key, &Put::IfMatch(Version(String::new())));
            let content = Bytes::from_static(b"probe");
            let standard = StorageClass::Standard;
            let found = match self
                .write(&call, probe, content.clone(), Condition::Match(NOBODYS_ETAG), standard)
                .await
            {
                Ok(_) => Replacements::InTurns("the server ignores If-Match"),
                Err(StoreError::Precondition { .. }) => {
                    let etag = self.etag(&call, probe).await?.unwrap_or_default();
                    match self.write(&call, probe, content, Condition::Match(&etag), standard).await {
                        Ok(_) => Replacements::ByServer,
                        Err(StoreError::Precondition { .. }) => Replacements::InTurns("the server fails every If-Match"),
                        Err(e) => return Err(e),
                    }
                }
                Err(e) => return Err(e),
            };
            if let Replacements::InTurns(why) = found {
                warn!(
                    store = self.url,
                    "{why}: objects are replaced in turns, which takes two more requests each"
                );
            }
            Ok(found)
        };
        self.conditions.replacements.get_or_try_init(find_out).await.copied()
    }

    /// Replaces this version of an object.
    pub(super) async fn replace(&self, key: &str, bytes: Bytes, version: &Version) -> Result<Version, StoreError> {
        let call = Call::put(key, &Put::IfMatch(version.clone()));
        let standard = StorageClass::Standard;
        if let Replacements::ByServer = self.replacements(key).await? {
            return self.write(&call, key, bytes, Condition::Match(&version.0), standard).await;
        }
        let changed = || StoreError::Precondition {
            url: self.url.clone(),
            key: key.to_owned(),
        };
        let turn = format!("{}/{:x}", beside(key, TURNS), Sha256::digest(format!("{key} {}", version.0)));
        let (creation, mark) = (Call::put(key, &Put::IfAbsent), format!("{:x}", Sha256::digest(&bytes)));
        for number in 0u32.. {
            let name = format!("{turn}-{number}");
            match self
                .write(&creation, &name, mark.clone().into(), Condition::Absent, standard)
                .await
            {
                Ok(_) => break,
                Err(StoreError::AlreadyExists { .. }) => {}
                Err(e) => return Err(e),
            }
            let (taken_for, taken_us) = self.small(&creation, &name).await?;
            // Its own, of an attempt whose answer was lost.
            if taken_for == mark.as_bytes() {
                break;
            }
            if clock::now_us().saturating_sub(taken_us) < i64::try_from(TURN_TERM.as_micros()).unwrap_or(i64::MAX) {
                return Err(changed());
            }
        }
        match self.etag(&call, key).await? {
            Some(etag) if etag == version.0 => self.write(&call, key, bytes, Condition::None, standard).await,
            _ => Err(changed()),
        }
    }

    /// For people: how conditions are kept that the server does not keep.
    pub(super) async fn workarounds(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let key = format!("{prefix}/probes");
        self.ensure_creations(&key).await?;
        Ok(match self.replacements(&key).await? {
            Replacements::ByServer => Vec::new(),
            Replacements::InTurns(why) => vec![format!(
                "{why}: objects are replaced in turns, each claimed by creating an object; two more requests, and as safe"
            )],
        })
    }

    async fn etag(&self, call: &Call<'_>, key: &str) -> Result<Option<String>, StoreError> {
        let request = self.client.head_object().bucket(&self.name).key(self.name_of(key));
        let head = request.set_expected_bucket_owner(self.owner.clone()).send().await;
        match head.map_err(|e| self.error(call, e)) {
            Ok(head) => Ok(head.e_tag),
            Err(StoreError::Precondition { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A turn's content, and when it was taken.
    async fn small(&self, call: &Call<'_>, key: &str) -> Result<(Bytes, i64), StoreError> {
        let turn = self.get(call, key, 0).await?;
        let taken_us = turn.last_modified.and_then(|at| at.secs().checked_mul(super::US_PER_S));
        let taken_us = taken_us.ok_or_else(|| self.failed(call, "the answer has no Last-Modified"))?;
        let content = turn.body.collect().await.map_err(|e| self.failed(call, e))?;
        Ok((content.into_bytes(), taken_us))
    }
}
