//! What of a deletion lies in EC2: its record is put aside before, and goes after.

use crate::{
    archive::{listing::Archive, records::Snapshot},
    store::{Put, StoreError},
    support::hint::message,
    volume::{
        cloud::{Cause, Cloud, CloudError},
        marks,
    },
};

use super::{
    super::plan::{Deletion, Ec2Part},
    Applied, Kept, delete as delete_object,
};

fn kept(deletion: &Deletion, key: &str, reason: String) -> Kept {
    Kept {
        name: deletion.name.clone(),
        key: key.to_owned(),
        reason,
    }
}

/// Whether these credentials may delete all of it, and the record is put aside. Otherwise nothing was done, and `applied` says why: a call
/// that EC2 does not answer keeps nobody from what does not need it.
///
/// # Errors
/// Where the store fails.
pub(super) async fn prepare(
    archive: &Archive,
    cloud: &dyn Cloud,
    deletion: &Deletion,
    part: &Ec2Part,
    applied: &mut Applied,
) -> anyhow::Result<bool> {
    for id in &part.snapshot_ids {
        match cloud.rehearse_delete(&part.region, id).await {
            // What else holds it is known when it is deleted.
            Ok(()) | Err(CloudError { cause: Cause::Held, .. }) => {}
            Err(e) => {
                applied.refused.push(kept(deletion, id, message(&e.error)));
                return Ok(false);
            }
        }
    }
    let (key, record) = &part.aside;
    match put_aside(archive, key, record).await {
        Ok(()) => Ok(true),
        Err(e) => match e.downcast_ref::<StoreError>() {
            Some(StoreError::Refused { .. }) => {
                applied.refused.push(kept(deletion, key, message(&e)));
                Ok(false)
            }
            _ => Err(e),
        },
    }
}

/// A run that died may have put it there.
async fn put_aside(archive: &Archive, key: &str, record: &Snapshot) -> anyhow::Result<()> {
    let bytes = serde_json::to_vec_pretty(record)?;
    match archive.store.put(key, bytes.clone().into(), Put::IfAbsent).await {
        Err(StoreError::AlreadyExists { .. }) => {}
        put => return put.map(drop).map_err(Into::into),
    }
    let (there, version) = archive.record::<Snapshot>(key).await?;
    if there != *record {
        archive.store.put(key, bytes.into(), Put::IfMatch(version)).await?;
    }
    Ok(())
}

/// Deletes it, and then the record; what is kept is in `applied`, and found by the next run.
///
/// # Errors
/// Where the store fails.
pub(super) async fn delete(
    archive: &Archive,
    cloud: &dyn Cloud,
    deletion: &Deletion,
    part: &Ec2Part,
    applied: &mut Applied,
) -> anyhow::Result<()> {
    let shard = archive.shard.to_string();
    let there = match cloud.named(&part.region, &part.snapshot_ids).await {
        Ok(there) => there,
        Err(e) => {
            let all = part.snapshot_ids.join(", ");
            applied.refused.push(kept(deletion, &all, message(&e.error)));
            return Ok(());
        }
    };
    let mut is_gone = true;
    for made in &there {
        let id = &made.snapshot_id;
        if !marks::bears(made, &shard, &part.operation) {
            let reason = format!("{id} in {} bears the tags of something else", part.region);
            applied.refused.push(kept(deletion, id, reason));
            is_gone = false;
            continue;
        }
        match cloud.delete(&part.region, id).await {
            Ok(()) => applied.ec2_snapshots_deleted += 1,
            Err(e) if e.cause == Cause::Held => {
                applied.locked.push(kept(deletion, id, message(&e.error)));
                is_gone = false;
            }
            Err(e) => {
                applied.refused.push(kept(deletion, id, message(&e.error)));
                is_gone = false;
            }
        }
    }
    if !is_gone {
        return Ok(());
    }
    let (key, _) = &part.aside;
    match delete_object(archive, key).await {
        Ok(()) => applied.objects_deleted += 1,
        Err(StoreError::Locked { lock, .. }) => applied.locked.push(kept(deletion, key, lock)),
        Err(e @ StoreError::Refused { .. }) => applied.refused.push(kept(deletion, key, e.to_string())),
        Err(e) => return Err(e.into()),
    }
    Ok(())
}
