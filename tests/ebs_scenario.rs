//! The life and death of a region, as one story: a replica under parallel apply whose volumes are snapshotted by the schedule while the
//! primary is written to, copies in another region, a failover under load, and the home region dead. The other one then recovers
//! from its copies and its bucket, alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use mysql_pitr::{
    archive::{
        listing::Archive,
        records::{Reason, Snapshot},
    },
    recover::{
        plan::{Plan, Request, plan},
        target::Target,
    },
    support::clock::{US_PER_S, WallClock, now_us},
    volume::disks::Reach,
};

use crate::support::{
    ebs::{Ec2, Machine},
    eventually,
    load::{LOAD_TABLES, Load, wait_rows},
    moto::{Moto, make_bucket, s3_node},
    mysql::Server,
    node::{Agent, Node, SHARD, path_text},
    only_at,
    orchestrator::FakeOrchestrator,
    replicator::bucket,
    story::{assert_holds, moment_on, wait_until},
};

const HOME: &str = "eu-west-1";
const HOME_ZONE: &str = "eu-west-1a";
const DR: &str = "eu-central-1";
const DR_ZONE: &str = "eu-central-1b";
const HOME_BUCKET: &str = "home";
const DR_BUCKET: &str = "far";
/// Some 150 transactions per second, for appliers that sync them to a file in a file in a file.
const PAUSE: Duration = Duration::from_millis(40);
/// Far enough for an agent to be started anew; one that takes longer makes the run up.
const DUE_IN_US: i64 = 3 * US_PER_S;
const INSERT: &str = "INSERT INTO d.t (w, v) VALUES (99, UUID())";
/// Of a replica's threads, those that have applied something.
const BUSY_WORKERS: &str =
    "SELECT COUNT(*) FROM performance_schema.replication_applier_status_by_worker WHERE last_applied_transaction <> ''";
const REPLICA_SETTINGS: &str = "SELECT (SELECT COUNT(*) FROM mysql.slave_master_info) + (SELECT COUNT(*) FROM mysql.slave_relay_log_info) \
                                + (SELECT COUNT(*) FROM mysql.slave_worker_info)";
/// What ends with the home region.
struct Home {
    primary: Server,
    /// On volumes.
    replica: Server,
    beside_primary: Node,
    beside_replica: Node,
    orchestrator: FakeOrchestrator,
    s3: Moto,
}

/// A test that failed says what the agents said.
impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (name, node) in [("primary", &self.beside_primary), ("replica", &self.beside_replica)] {
                let log = fs::read_to_string(node.dir.path().join("agent.log"));
                println!("---- the {name}'s agent\n{}", log.unwrap_or_default());
            }
        }
    }
}

/// What does not.
struct Dr {
    /// Commands there; what they are told of is in that region.
    node: Node,
    ec2: Ec2,
}

struct Story {
    // Dropped in this order: servers before the volumes that they are on.
    home: Home,
    dr: Dr,
    volumes: BTreeMap<String, PathBuf>,
    machine: Machine,
}

impl Story {
    /// Two servers that replicate, and no agent yet. None where volumes cannot be made.
    async fn begin() -> Option<Story> {
        let ec2 = Ec2::start()?;
        let s3 = Moto::start();
        make_bucket(&s3, HOME_BUCKET);
        make_bucket(&ec2.moto, DR_BUCKET);
        let (machine, dr) = (ec2.machine(HOME_ZONE).await, ec2.machine(DR_ZONE).await);
        let volumes = ec2.mounted_volumes(&machine, &["data", "logs"]).await;

        let primary = Server::start(&["--report-host=127.0.0.1", "--server-id=1"]).await;
        primary.execute(&["GRANT RELOAD ON *.* TO mysql_pitr@localhost"]).await;
        primary.execute(&LOAD_TABLES).await;
        let logs = format!("--log-bin={}", ec2.root().join("logs/mysql-bin").display());
        let options = [
            "--report-host=127.0.0.1",
            "--server-id=2",
            &logs,
            "--innodb-redo-log-capacity=64M",
            "--replica-parallel-workers=4",
            "--replica-preserve-commit-order=ON",
        ];
        let mut replica = primary.start_clone_at(&ec2.root().join("data/mysql"), &options).await;
        replica.replicate_from(&primary).await;
        let orchestrator = FakeOrchestrator::start(&[primary.port, replica.port]).await;
        orchestrator.candidate(replica.port, true);

        let shared = format!(
            "[replica]\nurl = \"s3://{DR_BUCKET}\"\nregion = \"{HOME}\"\nendpoint = \"{}\"\npath_style = true\nreplication = \"agent\"\n\
             interval = \"2s\"\n[ship]\nflush_interval = \"500ms\"\n[orchestrator]\nurls = [\"{}\"]\ntimeout = \"10s\"\n",
            ec2.moto.endpoint,
            orchestrator.url()
        );
        let node = |server: &Server, ebs: &str| {
            let node = s3_node(
                server,
                &s3.endpoint,
                &format!("s3://{HOME_BUCKET}"),
                &format!("{shared}{ebs}"),
            );
            node.reconfigure("[snapshot]", "[snapshot]\nprovider = \"ebs\"");
            node
        };
        let beside_primary = node(&primary, "");
        let mut beside_replica = node(&replica, &ec2.section(&machine, &volumes, DR));
        beside_replica.environment = machine.environment();
        fs::create_dir(ec2.root().join("dr")).unwrap();
        let recover = ec2.recover_section(&dr, "");
        let mut there = s3_node(&replica, &ec2.moto.endpoint, &format!("s3://{DR_BUCKET}"), &recover);
        there.environment = dr.environment();
        Some(Story {
            home: Home {
                primary,
                replica,
                beside_primary,
                beside_replica,
                orchestrator,
                s3,
            },
            dr: Dr { node: there, ec2 },
            volumes,
            machine,
        })
    }

    /// The newest of so many snapshots, once the agent says so of it. Nothing is asked of the bucket meanwhile, which has work to do.
    async fn wait_snapshot(&self, count: usize, agent: &Agent, says: &str) -> Snapshot {
        eventually(says, async || agent.log().contains(says)).await;
        let mut snapshots = self.home.bucket().archive().snapshots().await.unwrap();
        assert_eq!(snapshots.len(), count, "{snapshots:?}");
        snapshots.pop().unwrap()
    }

    /// The replica's agent with a schedule whose one run is soon; the snapshot that it takes, and copies.
    async fn scheduled_snapshot(&self, agent: Agent) -> (Agent, Snapshot) {
        agent.stop().await;
        let node = &self.home.beside_replica;
        fs::remove_file(node.dir.path().join("agent.log")).unwrap();
        let due_us = (now_us() + DUE_IN_US) / US_PER_S * US_PER_S;
        node.reconfigure("schedule = \"off\"", &format!("schedule = \"{}\"", only_at(due_us)));
        let agent = node.agent();
        let due = "a snapshot is due by the schedule";
        eventually(due, async || agent.log().contains(due)).await;
        let id = self.wait_snapshot(2, &agent, "began a snapshot under the lock").await.id;
        let copied = format!("the snapshot is complete in {DR} and {HOME} snapshot={id}");
        let taken = self.wait_snapshot(2, &agent, &copied).await;
        assert!(taken.started_at_us >= due_us && taken.volumes.iter().all(|v| v.complete_in(DR).is_some()));
        (agent, taken)
    }
}

/// A region's bucket.
struct Bucket<'m> {
    s3: &'m Moto,
    name: &'static str,
    region: &'static str,
}

impl Bucket<'_> {
    fn archive(&self) -> Archive {
        Archive {
            store: bucket(&self.s3.endpoint, self.name),
            shard: SHARD.to_owned().try_into().unwrap(),
            clock: Arc::new(WallClock),
        }
    }

    /// Of a recovery there. None while there is nothing to recover.
    async fn plan(&self, target: Target) -> Option<Plan> {
        let reach = Some(Reach {
            region: Some(self.region.to_owned()),
            ..Reach::default()
        });
        let request = Request {
            reach,
            ..Request::new(target)
        };
        plan(&self.archive(), &request).await.ok()
    }

    /// Waits until a recovery of everything begins with that snapshot and leads to all that the server has executed.
    async fn wait_recoverable(&self, server: &Server, snapshot: &Snapshot) {
        let wanted = server.gtid_executed().await;
        eventually(&format!("all of it can be recovered in {}", self.region), async || {
            let plan = self.plan(Target::Latest).await;
            plan.is_some_and(|p| p.snapshot.id == snapshot.id && p.target_gtids == wanted)
        })
        .await;
    }
}

impl Home {
    fn bucket(&self) -> Bucket<'_> {
        Bucket {
            s3: &self.s3,
            name: HOME_BUCKET,
            region: HOME,
        }
    }
}

impl Dr {
    fn bucket(&self) -> Bucket<'_> {
        Bucket {
            s3: &self.ec2.moto,
            name: DR_BUCKET,
            region: DR,
        }
    }
}

/// i6, i7, i13
#[tokio::test(flavor = "multi_thread")]
async fn i13_the_other_region_recovers_what_survived_a_failover_with_home_dead() {
    let Some(mut story) = Story::begin().await else { return };
    let shipper = story.home.beside_primary.agent();
    let candidate = story.home.beside_replica.agent();
    story.wait_snapshot(1, &candidate, "the snapshot is complete").await;

    // Load, and a snapshot of the replica by the schedule.
    let load = Load::start_paced(&story.home.primary, PAUSE).await;
    wait_rows(&story.home.replica, 100).await;
    wait_until(&story.home.replica, BUSY_WORKERS, 2).await;
    let at_first = story.home.replica.gtid_executed().await;
    let (candidate, snapshot) = story.scheduled_snapshot(candidate).await;
    wait_rows(&story.home.replica, 100).await;
    load.stop().await;
    let replica_uuid = story.home.replica.uuid().await;
    assert_eq!(snapshot.server_uuid, replica_uuid);
    assert!(at_first.is_subset(&snapshot.gtids_before) && snapshot.gtids_before != at_first);
    assert_eq!(Some(&snapshot.gtids_before), snapshot.gtids_after.as_ref(), "it was locked");
    let asked = story.dr.ec2.forms(HOME, "CreateSnapshots").pop().unwrap();
    assert_eq!(asked["InstanceSpecification.InstanceId"], story.machine.id);
    for value in ["schedule", snapshot.id.as_str(), SHARD] {
        assert!(asked.values().any(|v| v == value), "no tag says {value}: {asked:?}");
    }
    let taken: BTreeSet<&String> = snapshot.volumes.iter().map(|v| &v.volume_id).collect();
    assert_eq!(taken, story.volumes.keys().collect());
    let before = moment_on(&story.home.primary, INSERT).await;

    // The primary dies under load, and what the replica holds of it goes on.
    let load = Load::start_paced(&story.home.primary, PAUSE).await;
    wait_rows(&story.home.replica, 100).await;
    story.home.primary.kill().await;
    shipper.kill().await;
    load.broken_off().await;
    story.home.replica.wait_applied().await;
    story.home.orchestrator.kill(story.home.primary.port);
    story.home.replica.promote().await;
    story.home.orchestrator.set_primary(story.home.replica.port);
    // As the copied replica knows it. Another test's server may have the port by now.
    let source = TcpListener::bind(("127.0.0.1", story.home.primary.port)).ok();
    let load = Load::start_paced(&story.home.replica, PAUSE).await;
    wait_rows(&story.home.replica, 100).await;
    story.home.replica.execute(&["FLUSH BINARY LOGS"]).await;
    wait_rows(&story.home.replica, 100).await;
    load.stop().await;
    let last = moment_on(&story.home.replica, INSERT).await;
    story.home.bucket().wait_recoverable(&story.home.replica, &snapshot).await;
    story.dr.bucket().wait_recoverable(&story.home.replica, &snapshot).await;
    let timelines = story.home.bucket().archive().timelines().await.unwrap();
    let [_, timeline] = timelines.as_slice() else {
        panic!("{timelines:?}")
    };
    assert_eq!(
        (timeline.parent, timeline.reason, timeline.adopted, timeline.server_uuid),
        (Some(1), Reason::Promotion, true, replica_uuid)
    );
    assert!(before.gtids.is_subset(&timeline.branch_set) && last.gtids != timeline.branch_set);

    // The end of the region.
    let Story { mut home, dr, .. } = story;
    home.replica.kill().await;
    candidate.kill().await;
    drop(home);
    dr.ec2.end_region(HOME);
    let asked = dr.ec2.asked(HOME);
    let gtid = before.gtid.parse().unwrap();
    let exact = dr.bucket().plan(Target::Gtid { gtid, exclusive: false }).await.unwrap();
    assert_eq!((&exact.target_gtids, &exact.snapshot.id), (&before.gtids, &snapshot.id));
    let target = dr.ec2.root().join("dr/mysql");
    let report = dr
        .node
        .json(&["recover", "--latest", "--target-dir", path_text(&target)])
        .await;
    println!("{report}");
    assert_eq!(report["gtid_executed"], last.gtids.to_string());
    let copies: BTreeSet<&str> = snapshot.volumes.iter().map(|v| v.complete_in(DR).unwrap()).collect();
    let forms = dr.ec2.forms(DR, "CreateVolume");
    assert_eq!(
        forms.iter().map(|f| f["SnapshotId"].as_str()).collect::<BTreeSet<_>>(),
        copies
    );
    assert_eq!(dr.ec2.asked(HOME), asked, "home is not needed");

    // As an operator starts it: what keeps it from replicating is that it does not know from whom.
    let recovered = Server::start_on(&target, &["--server-id=3"]).await;
    assert_holds(&recovered, &last, "with home dead").await;
    let (settings,): (u64,) = recovered.root().await.one(REPLICA_SETTINGS).await.unwrap();
    assert_eq!(settings, 0, "nothing is left of the copied replica's settings");
    recovered.stop_for_good().await;
    if let Some(source) = source {
        source.set_nonblocking(true).unwrap();
        assert!(source.accept().is_err(), "the copied replica asked its source");
    }
}
