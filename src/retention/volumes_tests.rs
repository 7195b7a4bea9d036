//! What becomes of snapshots of volumes, by what a region's EC2 and the other region's bucket hold.

use std::{collections::BTreeMap, time::Duration};

use uuid::Uuid;

use super::{
    holdings::{Elsewhere, Holdings},
    in_ec2::InEc2,
    plan::{Kind, Plan, plan},
    rules::Rules,
};
use crate::{
    archive::{
        keys::{self, Shard},
        records::{CopyState, Lease, LeasedPart, Reason, RegionalCopy, Snapshot, SnapshotState, Step, Timeline, VolumeSnapshot},
        survey::{Fault, Subject, Survey},
    },
    store::ObjectMeta,
    volume::{
        cloud::{Made, MadeState, OPERATION_TAG, SOURCE_TAG},
        marks,
    },
};

const HOME: &str = "eu-west-1";
const AWAY: &str = "eu-central-1";
const HERE_URL: &str = "s3://home/mysql";
const THERE_URL: &str = "s3://dr/mysql";
const DAY_US: i64 = 86_400_000_000;
const NOW_US: i64 = 1_795_000_000_000_000;

fn rules() -> Rules {
    Rules {
        daily: 1,
        weekly: 0,
        monthly: 0,
        diverged: Duration::from_hours(24),
        segments_grace: Duration::from_hours(1),
        orphans_grace: Duration::from_hours(24),
    }
}

/// So many days old, of one volume, complete in both regions.
fn snapshot(id: &str, days: i64) -> Snapshot {
    let record = serde_json::json!({
        "format": 1, "id": id, "state": "complete", "provider": "ebs", "timeline": 1, "server_uuid": Uuid::nil(),
        "server_version": "", "started_at_us": NOW_US - days * DAY_US, "finished_at_us": NOW_US - days * DAY_US, "gtids_before": "",
        "gtids_after": "", "variables": {}, "data_key": "", "data_bytes": 0, "stored_bytes": 0, "stored_sha256": "", "step": "copied",
    });
    let copy = |region: &str| RegionalCopy {
        region: region.to_owned(),
        snapshot_id: Some(format!("snap-{id}-{region}")),
        state: CopyState::Complete,
        failure: None,
        encrypted: None,
        kms_key: None,
        tried_at_us: None,
    };
    Snapshot {
        volumes: vec![VolumeSnapshot {
            volume_id: "vol-1".to_owned(),
            mount_point: "/data".into(),
            filesystem: "xfs".to_owned(),
            partition: None,
            size_gib: 8,
            holds: Vec::new(),
            copies: vec![copy(HOME), copy(AWAY)],
        }],
        ..serde_json::from_value(record).unwrap()
    }
}

/// As EC2 has it where the record says that it is, begun so many days ago.
fn made(id: &str, region: &str, days: i64) -> Made {
    let record = format!("{HERE_URL}/shop/snapshots/{id}.json");
    let tags = [(marks::SHARD_TAG, "shop"), (OPERATION_TAG, id), (marks::RECORD_TAG, &record)];
    let mut tags: BTreeMap<String, String> = tags.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let mut description = marks::description("shop", id);
    if region == AWAY {
        let source = format!("snap-{id}-{HOME}");
        description = marks::copy_description(&source, HOME);
        tags.insert(SOURCE_TAG.to_owned(), source);
    }
    Made {
        snapshot_id: format!("snap-{id}-{region}"),
        volume_id: if region == HOME { "vol-1" } else { "vol-ffffffff" }.to_owned(),
        description,
        started_at_us: Some(NOW_US - days * DAY_US),
        state: MadeState::Complete,
        percent: None,
        encrypted: None,
        kms_key: None,
        tags,
    }
}

struct World {
    shard: Shard,
    holdings: Holdings,
    region: &'static str,
    made: Vec<Made>,
}

impl World {
    /// The home region's; the other bucket holds the same records, and EC2 has all that they name.
    fn new(snapshots: &[Snapshot]) -> World {
        let shard = Shard::try_from("shop".to_owned()).unwrap();
        let timeline = Timeline {
            format: 1,
            id: 1,
            parent: None,
            server_uuid: Uuid::nil(),
            branch_set: Default::default(),
            reason: Reason::FirstStart,
            adopted: true,
            confirmed_by: None,
            nonce: Uuid::nil(),
            claimed_at_us: 0,
            skipped: Default::default(),
        };
        let keys: Vec<String> = snapshots.iter().map(|s| keys::snapshot_key(&shard, &s.id)).collect();
        let mut world = World {
            holdings: Holdings {
                objects: BTreeMap::new(),
                survey: Survey {
                    timelines: vec![timeline],
                    snapshots: snapshots.to_vec(),
                    binlogs: Vec::new(),
                    faults: Vec::new(),
                },
                leases: Vec::new(),
                url: HERE_URL.to_owned(),
                elsewhere: Some(Elsewhere {
                    objects: keys.iter().map(|key| (key.clone(), 1)).collect(),
                    unknown: None,
                    leased_at_us: None,
                }),
                aside: BTreeMap::new(),
                aside_faults: Vec::new(),
                ec2: Err("not asked".to_owned()),
            },
            shard,
            region: HOME,
            made: Vec::new(),
        };
        keys.iter().for_each(|key| world.object(key, 40));
        world.at(HOME, snapshots);
        world
    }

    /// Pruned for this region, whose EC2 has all that these name there.
    fn at(&mut self, region: &'static str, snapshots: &[Snapshot]) {
        self.region = region;
        self.holdings.url = if region == HOME { HERE_URL } else { THERE_URL }.to_owned();
        let days = |s: &Snapshot| (NOW_US - s.started_at_us) / DAY_US;
        self.made = snapshots.iter().map(|s| made(&s.id, region, days(s))).collect();
    }

    fn object(&mut self, key: &str, days: i64) {
        let object = ObjectMeta {
            key: key.to_owned(),
            size_bytes: 1,
            modified_us: Some(NOW_US - days * DAY_US),
        };
        self.holdings.objects.insert(key.to_owned(), object);
    }

    fn plan(&mut self) -> Plan {
        let (region, made) = (self.region.to_owned(), self.made.clone());
        self.holdings.ec2 = Ok(InEc2::of(region, self.shard.to_string(), made));
        self.plan_as_it_is()
    }

    fn plan_as_it_is(&self) -> Plan {
        plan(&self.shard, &self.holdings, &rules(), NOW_US).unwrap()
    }
}

/// The snapshots that go, each with what of it lies in EC2.
fn gone(plan: &Plan) -> Vec<(&str, Vec<&str>)> {
    let of_snapshots = plan
        .deletions
        .iter()
        .filter(|d| matches!(d.kind, Kind::Snapshot | Kind::Volumes | Kind::Orphan));
    let gone = of_snapshots.map(|d| {
        let ids = d
            .ec2
            .iter()
            .flat_map(|part| part.snapshot_ids.iter().map(String::as_str))
            .collect();
        (d.name.as_str(), ids)
    });
    gone.collect()
}

fn says(plan: &Plan, text: &str) -> bool {
    plan.warnings.iter().any(|w| w.contains(text))
}

#[test]
fn a_region_deletes_what_lies_in_it() {
    let snapshots = [snapshot("a", 30), snapshot("b", 20)];
    let mut world = World::new(&snapshots);
    let home = world.plan();
    assert_eq!(gone(&home), [("a", vec!["snap-a-eu-west-1"])]);
    let part = home.deletions[0].ec2.as_ref().unwrap();
    assert_eq!((part.region.as_str(), part.operation.as_str()), (HOME, "a"));
    let (key, record) = &part.aside;
    assert_eq!((key.as_str(), &**record), ("shop/pruned/eu-west-1/a.json", &snapshots[0]));
    world.at(AWAY, &snapshots);
    assert_eq!(gone(&world.plan()), [("a", vec!["snap-a-eu-central-1"])]);
    // What is gone already needs no second thought.
    world.made.clear();
    assert_eq!(gone(&world.plan()), [("a", vec![])]);
    assert!(says(&world.plan(), "does not have all of snapshot b"));
}

#[test]
fn a_newer_one_that_ec2_does_not_have_takes_nobodys_place() {
    let snapshots = [snapshot("a", 30), snapshot("b", 20), snapshot("c", 10)];
    let mut world = World::new(&snapshots);
    world.made[2].state = MadeState::Failed("lost".to_owned());
    let plan = world.plan();
    assert_eq!(gone(&plan), [("a", vec!["snap-a-eu-west-1"])]);
    assert_eq!(plan.histories[0].snapshots, ["b", "c"]);
    assert!(says(&plan, "EC2 in eu-west-1 does not have all of snapshot c"));
    // Of the other region it has what the record says, as far as it is said.
    let mut incomplete = snapshots.clone();
    incomplete[2].volumes[0].copies[1].state = CopyState::Pending;
    let mut world = World::new(&incomplete);
    world.at(AWAY, &incomplete);
    assert_eq!(world.plan().histories[0].snapshots, ["b", "c"]);
}

#[test]
fn what_a_copy_or_a_recovery_needs_stays() {
    let mut snapshots = [snapshot("a", 3), snapshot("b", 2)];
    snapshots[0].step = Some(Step::Settled);
    snapshots[0].volumes[0].copies[1].state = CopyState::Failed;
    let mut world = World::new(&snapshots);
    let plan = world.plan();
    assert!(
        gone(&plan).is_empty() && says(&plan, "its copy to eu-central-1 is not complete"),
        "{plan:?}"
    );
    // Nobody has tried for long.
    snapshots[0].finished_at_us = Some(NOW_US - 8 * DAY_US);
    assert_eq!(gone(&World::new(&snapshots).plan()).len(), 1);
    // Somebody has tried all the time, and failed.
    snapshots[0].volumes[0].copies[1].tried_at_us = Some(NOW_US - DAY_US);
    assert_eq!(gone(&World::new(&snapshots).plan()).len(), 1);
    snapshots[0].volumes[0].copies[1].state = CopyState::Pending;
    assert!(gone(&World::new(&snapshots).plan()).is_empty());

    // A recovery here may read the other region's bucket, in which its lease lies then.
    const MINUTE_US: i64 = 60_000_000;
    for (minutes, goes) in [(39, 0), (41, 1)] {
        let mut world = World::new(&[snapshot("a", 30), snapshot("b", 20)]);
        put_aside(&mut world, HOME, snapshot("0", 40));
        world.holdings.elsewhere.as_mut().unwrap().leased_at_us = Some(NOW_US - minutes * MINUTE_US);
        assert_eq!(gone(&world.plan()).len(), 2 * goes, "{minutes}");
    }

    let mut world = World::new(&[snapshot("a", 30), snapshot("b", 20)]);
    let lease = |needs| Lease {
        format: 1,
        id: "r".to_owned(),
        created_at_us: NOW_US,
        expires_at_us: NOW_US + DAY_US,
        needs,
    };
    let needs = |id: &str| {
        Some(LeasedPart {
            snapshot: id.to_owned(),
            timeline: 1,
            oldest_binlog: None,
        })
    };
    world.holdings.leases = vec![lease(needs("a"))];
    assert!(gone(&world.plan()).is_empty());
    // A run has put its record aside, and the recovery had found it before.
    let mut world = World::new(&[snapshot("b", 20)]);
    put_aside(&mut world, HOME, snapshot("a", 30));
    world.holdings.leases = vec![lease(needs("a"))];
    let plan = world.plan();
    assert!(gone(&plan).is_empty() && plan.held_up.is_some());
}

fn put_aside(world: &mut World, region: &str, record: Snapshot) {
    let key = keys::pruned_key(&world.shard, region, &record.id);
    world.object(&key, 3);
    world.made.push(made(&record.id, world.region, 30));
    world.holdings.aside.insert(key, record);
}

#[test]
fn what_a_run_has_begun_the_next_one_ends() {
    let mut world = World::new(&[snapshot("b", 20)]);
    put_aside(&mut world, HOME, snapshot("a", 30));
    let plan = world.plan();
    assert_eq!(gone(&plan), [("a", vec!["snap-a-eu-west-1"])]);
    assert!(plan.deletions[0].kind == Kind::Volumes && plan.deletions[0].keys.is_empty());
    // Of its snapshots nothing is left.
    world.made.retain(|m| m.snapshot_id != "snap-a-eu-west-1");
    assert_eq!(world.plan().deletions[0].keys, ["shop/pruned/eu-west-1/a.json"]);
    // The store has brought it here from the other region's bucket.
    world.at(AWAY, &[snapshot("a", 30), snapshot("b", 20)]);
    let plan = world.plan();
    assert_eq!(gone(&plan), [("shop/pruned/eu-west-1/a.json", vec![])]);
    // Nor is a record put aside where it is.
    let mut world = World::new(&[snapshot("a", 30), snapshot("b", 20)]);
    put_aside(&mut world, HOME, snapshot("a", 30));
    assert_eq!(gone(&world.plan()), [("a", vec!["snap-a-eu-west-1"])]);
    assert_eq!(world.plan().deletions[0].kind, Kind::Snapshot);
}

#[test]
fn nothing_is_orphaned_in_the_other_region() {
    let snapshots = [snapshot("a", 30), snapshot("b", 20)];
    let mut world = World::new(&snapshots);
    let there = |world: &mut World, ids: &[&str]| {
        let key = |id: &&str| (format!("shop/snapshots/{id}.json"), 1);
        world.holdings.elsewhere.as_mut().unwrap().objects = ids.iter().map(key).collect();
    };
    there(&mut world, &[]);
    let plan = world.plan();
    assert!(
        gone(&plan).is_empty() && says(&plan, "the bucket of eu-central-1 does not hold its record yet"),
        "{plan:?}"
    );
    // Pruned there, by that region's rules.
    there(&mut world, &["b"]);
    assert_eq!(gone(&world.plan()).len(), 1);
    world.holdings.elsewhere.as_mut().unwrap().unknown = Some("dead".to_owned());
    assert!(gone(&world.plan()).is_empty());
    world.holdings.elsewhere = None;
    assert!(says(&world.plan(), "[replica] has to name the bucket"));
    // Where the copies are nobody has to ask the bucket that the records were written to.
    world.at(AWAY, &snapshots);
    assert_eq!(gone(&world.plan()), [("a", vec!["snap-a-eu-central-1"])]);
    // The bucket at home, and the other region's EC2.
    world.holdings.url = HERE_URL.to_owned();
    let plan = world.plan();
    assert!(
        gone(&plan).is_empty() && says(&plan, "this is the bucket of eu-west-1"),
        "{plan:?}"
    );
    // A region of which no record speaks is the wrong one.
    let mut world = World::new(&snapshots);
    world.at("us-east-1", &[]);
    assert!(gone(&world.plan()).is_empty());
}

#[test]
fn what_is_not_ours_stays_and_is_named() {
    let mut world = World::new(&[snapshot("a", 30), snapshot("b", 20)]);
    world.made[0].tags.insert(OPERATION_TAG.to_owned(), "x".to_owned());
    let plan = world.plan();
    assert!(gone(&plan).is_empty() && says(&plan, "snap-a-eu-west-1 in eu-west-1 bears the tags of something else"));
    // A copy that a lifecycle policy made of one that goes.
    let mut world = World::new(&[snapshot("a", 30), snapshot("b", 20)]);
    let mut policys = made("a", HOME, 29);
    (policys.snapshot_id, policys.volume_id) = ("snap-policy".to_owned(), "vol-ffffffff".to_owned());
    world.made.push(policys);
    assert_eq!(gone(&world.plan()), [("a", vec!["snap-a-eu-west-1"])]);
}

#[test]
fn what_no_record_speaks_of_is_named_and_stays() {
    let stray = |change: &dyn Fn(&mut World, &mut Made)| {
        let mut world = World::new(&[snapshot("b", 20)]);
        let mut stray = made("a", HOME, 400);
        change(&mut world, &mut stray);
        world.made.push(stray);
        let plan = world.plan();
        assert!(gone(&plan).is_empty(), "{plan:?}");
        plan.warnings
    };
    let says = |why: &str, change: &dyn Fn(&mut World, &mut Made)| {
        let warnings = stray(change);
        assert!(warnings.len() == 1 && warnings[0].contains(why), "{why}: {warnings:?}");
    };
    // However old it is: its record may have been moved away.
    says("by its tags the record is s3://home/mysql/shop/snapshots/a.json", &|_, _| {});
    says("no request of mysql-pitr made it", &|_, m| m.description = "mine".to_owned());
    says("the other region's bucket holds its record", &|w, _| {
        let objects = &mut w.holdings.elsewhere.as_mut().unwrap().objects;
        objects.insert("shop/snapshots/a.json".to_owned(), 1);
    });
    // Its record may be on its way, or cannot be read.
    assert!(stray(&|_, m| m.started_at_us = Some(NOW_US - DAY_US / 2)).is_empty());
    let fault = |w: &mut World, _: &mut Made| {
        let subject = Subject::Snapshot("a".to_owned());
        let (what, hint) = ("damaged".to_owned(), String::new());
        w.holdings.survey.faults.push(Fault { subject, what, hint });
    };
    assert_eq!(stray(&fault), ["damaged"]);
}

#[test]
fn nothing_goes_unseen() {
    let mut world = World::new(&[snapshot("a", 30), snapshot("b", 20)]);
    world.holdings.ec2 = Err("denied".to_owned());
    let plan = world.plan_as_it_is();
    assert!(gone(&plan).is_empty() && says(&plan, "it cannot be seen what EC2 has of them: denied"));
    // Of one that was given up nothing is left.
    let mut failed = snapshot("a", 30);
    (failed.state, failed.step) = (SnapshotState::Failed, Some(Step::Deleted));
    let mut world = World::new(&[failed.clone(), snapshot("b", 20)]);
    world.holdings.ec2 = Err("denied".to_owned());
    assert_eq!(gone(&world.plan_as_it_is()), [("a", vec![])]);
    // What its agent may not delete prune deletes.
    failed.step = Some(Step::Deleting);
    let mut world = World::new(&[failed, snapshot("b", 20)]);
    world.holdings.ec2 = Err("denied".to_owned());
    assert!(gone(&world.plan_as_it_is()).is_empty());
    assert_eq!(gone(&world.plan()), [("a", vec!["snap-a-eu-west-1"])]);
}
