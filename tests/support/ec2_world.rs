//! A machine with volumes, EC2 with a [`Front`] before it, and whoever takes snapshots of them and goes on with these, without a server and in
//! its own time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_ec2::{
    Client,
    config::{Credentials, Region, SharedCredentialsProvider},
    types::Filter,
};
use mysql_pitr::{
    archive::{
        keys,
        listing::Archive,
        records::{Snapshot, SnapshotState, Step},
    },
    binlog::gtid::GtidSet,
    snapshot::volumes::onward::{Went, onward},
    store::Put,
    support::{
        clock::{Clock, US_PER_MIN},
        progress::Progress,
    },
    volume::{
        cloud::{Cloud, OPERATION_TAG, Subject, Tags},
        disks::{self, Disks, Place, Reach, Shape},
        ebs::{self, EbsOptions},
        marks,
    },
};

use super::{
    ebs_stage::{client, tag},
    front::Front,
    memory_store::MemoryStore,
    moto::Moto,
    volume_record::{BEGIN_US, started},
};

/// One of those that moto knows from the start.
const IMAGE: &str = "ami-12c6146b";
const KEY: &str = "AKIDTEST";
pub const SECRET: &str = "nobody-prints-this";
pub const RECOVERY_TAG: &str = "mysql-pitr:recovery";
pub const CREATE_LIMIT: Duration = Duration::from_secs(60);
/// Longer than a copy that failed is left alone, and than three of which what was lost turns up.
const STEP_US: i64 = 11 * US_PER_MIN;
/// So often EC2 is waited for before it counts as stuck.
const WAITS_MAX: u32 = 4;

#[derive(Debug)]
struct StepClock(AtomicI64);

impl Clock for StepClock {
    fn now_us(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A machine with two volumes and what boots it, and what is known of their snapshots.
pub struct World {
    pub front: Front,
    pub archive: Archive,
    clock: Arc<StepClock>,
    /// Where the machine is, and where copies go.
    pub regions: [&'static str; 2],
    instance: String,
    pub volumes: Vec<String>,
    /// As an agent sees EC2, as a recovery does, and as what is there is looked at: without the front.
    pub cloud: Arc<dyn Cloud>,
    pub disks: Arc<dyn Disks>,
    pub ec2: [Client; 2],
}

fn config(key_id: &str, region: &str) -> SdkConfig {
    let keys = Credentials::new(key_id, SECRET, None, None, "tests");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .build()
}

fn cloud(front: &Front, regions: [&str; 2], key_id: &str) -> Arc<dyn Cloud> {
    let [home, away] = regions.map(str::to_owned);
    let options = EbsOptions {
        region: Some(home),
        endpoint: Some(front.endpoint.clone()),
        dr_region: Some(away),
        ..EbsOptions::default()
    };
    ebs::open_with(options, config(key_id, regions[0]))
}

impl World {
    pub async fn start(moto: &Moto, regions: [&'static str; 2]) -> World {
        let ec2 = regions.map(|region| client(moto, region));
        let run = ec2[0].run_instances().image_id(IMAGE).min_count(1).max_count(1);
        let instance = run.send().await.unwrap().instances()[0].instance_id().unwrap().to_owned();
        let zone = format!("{}a", regions[0]);
        let mut volumes = Vec::new();
        for device in ["/dev/sdf", "/dev/sdg"] {
            let made = ec2[0].create_volume().availability_zone(&zone).size(8).send().await.unwrap();
            let volume = made.volume_id().unwrap().to_owned();
            let attached = ec2[0]
                .attach_volume()
                .volume_id(&volume)
                .instance_id(&instance)
                .device(device);
            attached.send().await.unwrap();
            volumes.push(volume);
        }
        let clock = Arc::new(StepClock(AtomicI64::new(BEGIN_US)));
        let front = Front::start(&moto.endpoint).await;
        let reach = Reach {
            endpoint: Some(front.endpoint.clone()),
            ..Reach::default()
        };
        let place = Place {
            region: regions[0].to_owned(),
            zone,
            instance: instance.clone(),
        };
        World {
            archive: Archive {
                store: Arc::new(MemoryStore::default()),
                shard: "s".to_owned().try_into().unwrap(),
                clock: clock.clone(),
            },
            clock,
            cloud: cloud(&front, regions, KEY),
            disks: ebs::disks_with(&reach, Some(place), config(KEY, regions[0])).await.unwrap(),
            front,
            regions,
            instance,
            volumes,
            ec2,
        }
    }

    /// EC2, as an agent with that key sees it.
    pub fn cloud_of(&self, key_id: &str) -> Arc<dyn Cloud> {
        cloud(&self.front, self.regions, key_id)
    }

    pub fn step(&self) {
        self.clock.0.fetch_add(STEP_US, Ordering::Relaxed);
    }

    pub fn subject(&self, id: &str, volumes: &[String]) -> Subject {
        let shard = self.archive.shard.to_string();
        let tags = [(marks::SHARD_TAG, shard.clone()), (OPERATION_TAG, id.to_owned())];
        Subject {
            volumes: volumes.to_vec(),
            tags: Tags::from(tags.map(|(key, value)| (key.to_owned(), value))),
            description: marks::description(&shard, id),
        }
    }

    /// As whoever takes a snapshot does, without a server to lock: up to the record that says that it was begun.
    pub async fn begin(&self, cloud: &dyn Cloud, id: &str, volumes: &[String]) -> anyhow::Result<()> {
        let mut record = self.create(cloud, id, volumes).await?;
        record.step = Some(Step::Created);
        record.gtids_after = Some(GtidSet::new());
        let key = keys::snapshot_key(&self.archive.shard, id);
        let (_, version) = self.archive.record::<Snapshot>(&key).await?;
        self.archive.put_record(&key, &record, Put::IfMatch(version)).await?;
        Ok(())
    }

    /// The same, up to the record.
    pub async fn create(&self, cloud: &dyn Cloud, id: &str, volumes: &[String]) -> anyhow::Result<Snapshot> {
        let names: Vec<&str> = volumes.iter().map(String::as_str).collect();
        let mut record = started(id, &names, &self.regions);
        record.started_at_us = self.clock.now_us();
        let key = keys::snapshot_key(&self.archive.shard, id);
        assert!(self.archive.put_record(&key, &record, Put::IfAbsent).await?);
        let order = cloud.order(&cloud.facts(volumes).await?).await?;
        let made = cloud.create(&order, &self.subject(id, volumes), CREATE_LIMIT).await?;
        for volume in &mut record.volumes {
            let of_it = made.iter().find(|m| m.volume_id == volume.volume_id).unwrap();
            volume.copies[0].snapshot_id = Some(of_it.snapshot_id.clone());
        }
        Ok(record)
    }

    /// As the agent that has the turn does, until nothing is left to be done, or nothing goes on.
    pub async fn finish(&self, cloud: &dyn Cloud, id: &str) -> anyhow::Result<Snapshot> {
        let mut waits = 0;
        loop {
            match onward(&self.archive, cloud, id, &Progress::silent()).await? {
                Went::Ended(record) => return Ok(*record),
                Went::Waits(record) if waits == WAITS_MAX => return Ok(*record),
                Went::Waits(_) => {
                    waits += 1;
                    self.step();
                }
                Went::On(_) => {}
            }
        }
    }

    pub async fn record(&self, id: &str) -> Snapshot {
        let key = keys::snapshot_key(&self.archive.shard, id);
        self.archive.record::<Snapshot>(&key).await.unwrap().0
    }

    /// The snapshots in home and away that were made for mysql-pitr's, by the id of these.
    async fn made(&self) -> [BTreeMap<String, BTreeSet<String>>; 2] {
        let mut made = [BTreeMap::new(), BTreeMap::new()];
        for (ec2, made) in self.ec2.iter().zip(&mut made) {
            let filter = Filter::builder().name("tag-key").values(OPERATION_TAG).build();
            let asked = ec2.describe_snapshots().owner_ids("self").filters(filter);
            for snapshot in asked.send().await.unwrap().snapshots() {
                let ids: &mut BTreeSet<String> = made.entry(tag(snapshot, OPERATION_TAG).to_owned()).or_default();
                ids.insert(snapshot.snapshot_id().unwrap().to_owned());
            }
        }
        made
    }

    /// What EC2 has is what complete records name.
    pub async fn assert_nothing_is_orphaned(&self, what: &str) {
        let made = self.made().await;
        for record in self.archive.snapshots().await.unwrap() {
            for (region, made) in self.regions.iter().zip(&made) {
                let copies = record.volumes.iter().flat_map(|v| &v.copies);
                let named = copies.filter(|c| c.region == *region && record.state == SnapshotState::Complete);
                let named: BTreeSet<String> = named.filter_map(|c| c.snapshot_id.clone()).collect();
                let there = made.get(&record.id).cloned().unwrap_or_default();
                assert_eq!(there, named, "{what}, {region}: {record:?}");
            }
        }
    }

    /// As a recovery does that then gives it back.
    pub async fn volume(&self, snapshot: &str) -> anyhow::Result<()> {
        let disks = &self.disks;
        let volume = match disks.find((RECOVERY_TAG, "r")).await? {
            Some(volume) => volume,
            None => disks.create(order(snapshot, &Shape::default())).await?,
        };
        disks.attach(&volume).await?;
        disks.delete(&volume).await
    }

    pub fn names(&self) -> Vec<(&str, &str)> {
        vec![(&self.instance, "INSTANCE"), (&self.front.endpoint, "ENDPOINT")]
    }

    pub async fn snapshot(&self) -> String {
        let asked = self.ec2[0].create_snapshot().volume_id(&self.volumes[0]);
        asked.send().await.unwrap().snapshot_id.unwrap()
    }
}

pub fn order<'o>(snapshot: &'o str, shape: &'o Shape) -> disks::Order<'o> {
    disks::Order {
        snapshot,
        shape,
        token: "r".to_owned(),
        tags: vec![(RECOVERY_TAG, "r".to_owned())],
    }
}
