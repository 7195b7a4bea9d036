//! What keeps an object from being deleted.
//!
//! A bucket with Object Lock is versioned, and its DELETE never fails: it hides the object behind a delete marker, and the locked version stays,
//! and is paid for. Whoever locked it wants to see it, though. So that an archive is never hidden in part, an object is deleted only
//! once it could really go.

use aws_sdk_s3::{
    error::{ProvideErrorMetadata, SdkError},
    types::{ObjectLockEnabled, ObjectLockLegalHoldStatus},
};

use super::{Bucket, Call};
use crate::{
    store::StoreError,
    support::clock::{self, Moment},
};

impl Bucket {
    /// Refuses where the object is locked. One that is not there is not.
    pub(super) async fn ensure_unlocked(&self, key: &str) -> Result<(), StoreError> {
        let call = Call::read("look at the lock of", key);
        if !self.has_locks(&call).await? {
            return Ok(());
        }
        let request = self.client.head_object().bucket(&self.name).key(self.name_of(key));
        let head = request.set_expected_bucket_owner(self.owner.clone()).send().await;
        let head = match head.map_err(|e| self.error(&call, e)) {
            Err(e) if e.is_not_found() => return Ok(()),
            head => head?,
        };
        let until_us = head
            .object_lock_retain_until_date
            .and_then(|at| at.secs().checked_mul(super::US_PER_S));
        let lock = if head.object_lock_legal_hold_status == Some(ObjectLockLegalHoldStatus::On) {
            "a legal hold".to_owned()
        } else if let Some(until_us) = until_us.filter(|until| *until > clock::now_us()) {
            format!("until {}", Moment(until_us))
        } else {
            return Ok(());
        };
        Err(StoreError::Locked {
            url: self.url.clone(),
            key: key.to_owned(),
            lock,
        })
    }

    /// Whether objects of this bucket can be locked. Where nobody may know, every object is looked at.
    async fn has_locks(&self, call: &Call<'_>) -> Result<bool, StoreError> {
        let find_out = || async {
            let request = self.client.get_object_lock_configuration().bucket(&self.name);
            match request.set_expected_bucket_owner(self.owner.clone()).send().await {
                Ok(found) => {
                    let enabled = found.object_lock_configuration.and_then(|c| c.object_lock_enabled);
                    Ok(enabled == Some(ObjectLockEnabled::Enabled))
                }
                Err(SdkError::ServiceError(e)) if e.raw().status().as_u16() == 403 => {
                    // A bucket that refuses everything says so again, with what is to be done.
                    Ok(e.err().code() != Some("InvalidAccessKeyId"))
                }
                // Not configured, or a server that knows no locks.
                Err(SdkError::ServiceError(e)) if matches!(e.raw().status().as_u16(), 400 | 404 | 405 | 501) => Ok(false),
                Err(e) => Err(self.error(call, e)),
            }
        };
        self.locks.get_or_try_init(find_out).await.copied()
    }
}
