//! What a store's own replication does, from one bucket to another: late, in no order, and not at all while it is paused.

use std::collections::HashMap;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::config::{Credentials, Region, SharedCredentialsProvider};
use mysql_pitr::store::{
    Put, SharedStore, StoreError,
    s3::{S3Options, S3Store},
};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::SliceRandom};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

const LATE_MS_MAX: u64 = 400;
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// A bucket of a server that takes any keys.
pub fn bucket(endpoint: &str, name: &str) -> SharedStore {
    let keys = Credentials::new("AKIDTEST", "secret", None, None, "tests");
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .endpoint_url(endpoint)
        .build();
    let options = S3Options {
        bucket: name.to_owned(),
        path_style: true,
        ..S3Options::default()
    };
    Arc::new(S3Store::new(&config, options).unwrap())
}

/// Runs until it is dropped.
pub struct Replicator {
    paused: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Replicator {
    pub fn start(from: SharedStore, to: SharedStore, seed: u64) -> Replicator {
        let (paused, mut pausing) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed);
            let mut due: HashMap<(String, u64), Instant> = HashMap::new();
            loop {
                let _ = pausing.wait_for(|paused| !paused).await;
                let there: HashMap<String, u64> = to
                    .list("", None)
                    .await
                    .unwrap()
                    .into_iter()
                    .map(|o| (o.key, o.size_bytes))
                    .collect();
                let mut lacking = from.list("", None).await.unwrap();
                lacking.retain(|o| there.get(&o.key) != Some(&o.size_bytes));
                lacking.shuffle(&mut random);
                for object in lacking {
                    let late = Duration::from_millis(random.random_range(0..LATE_MS_MAX));
                    let at = *due
                        .entry((object.key.clone(), object.size_bytes))
                        .or_insert_with(|| Instant::now() + late);
                    if Instant::now() >= at && !*pausing.borrow() {
                        copy(&from, &to, &object.key, there.contains_key(&object.key)).await;
                    }
                }
                sleep(LOOK_INTERVAL).await;
            }
        });
        Replicator { paused, task }
    }

    pub fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }
}

async fn copy(from: &SharedStore, to: &SharedStore, key: &str, is_there: bool) {
    // Only records of snapshots change.
    if is_there && !key.contains("/snapshots/") {
        return;
    }
    let (bytes, _) = match from.get(key).await {
        Err(StoreError::NotFound { .. }) => return,
        got => got.unwrap(),
    };
    let condition = match is_there {
        true => Put::IfMatch(to.get(key).await.unwrap().1),
        false => Put::IfAbsent,
    };
    to.put(key, bytes, condition).await.unwrap();
}

impl Drop for Replicator {
    fn drop(&mut self) {
        self.task.abort();
    }
}
