//! Recovery from snapshots of EBS volumes, in another region than the one that died.
//!
//! The stand-in of `support::ebs` copies blocks, so that what a recovery begins with is what a running server had written at one instant.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use mysql_pitr::{
    archive::{
        keys,
        records::{
            CopyState, FORMAT_VERSION, FolderRole, HeldFolder, Provider, RegionalCopy, Snapshot, SnapshotState, Step,
            VolumeSnapshot,
        },
    },
    binlog::gtid::GtidSet,
    store::Put,
    support::clock::now_us,
};
use nix::unistd::syncfs;
use tokio::task::JoinSet;

use crate::support::{
    ebs::{Ec2, Machine, Noise},
    eventually,
    golden::assert_error,
    mysql::Server,
    node::{Node, path_text},
    story::assert_same,
    truth::{Truth, truth},
};

const HOME: &str = "eu-west-1";
const DR: &str = "eu-central-1";
const ID: &str = "20261121T101403.120000Z-0a1b2c3d";
const GIB: u64 = 1;
const WRITERS: usize = 4;

/// A server with its data and its binlogs on a volume each, and a machine in the other region.
struct Home {
    // Dropped in this order: whatever runs, then what it runs on.
    server: Server,
    node: Node,
    machine: Machine,
    dr: Machine,
    /// The ids, with where they are mounted.
    volumes: BTreeMap<String, PathBuf>,
    ec2: Ec2,
}

impl Home {
    async fn start() -> Option<Home> {
        let ec2 = Ec2::start()?;
        let (machine, dr) = (ec2.machine("eu-west-1a").await, ec2.machine("eu-central-1b").await);
        let mut volumes = BTreeMap::new();
        for name in ["data", "logs"] {
            let mount_point = ec2.root().join(name);
            volumes.insert(ec2.mounted_volume(&machine, GIB, &mount_point).await, mount_point);
        }
        let logs = format!("--log-bin={}", ec2.root().join("logs/mysql-bin").display());
        // Checkpoints far behind: most of the work is in the redo log only.
        let server = Server::start_at(&ec2.root().join("data/mysql"), &[&logs, "--innodb-redo-log-capacity=64M"]).await;
        let mut node = Node::new(
            &server,
            &format!(
                "[recover.volume]\nendpoint = \"{}\"\ndevice_dir = \"{}\"\ndevice_timeout = \"2s\"\n",
                ec2.endpoint,
                dr.device_dir.display()
            ),
        );
        let environment = [
            ("AWS_ACCESS_KEY_ID", "AKIDTEST"),
            ("AWS_SECRET_ACCESS_KEY", "nobody-prints-this"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &dr.metadata),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
            // What a killed recovery leaves there goes with the test's.
            ("TMPDIR", path_text(node.dir.path())),
        ];
        node.environment = environment.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        fs::create_dir(ec2.root().join("dr")).unwrap();
        server
            .execute(&[
                "GRANT RELOAD ON *.* TO mysql_pitr@localhost",
                "CREATE DATABASE d",
                "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, w INT, v VARCHAR(500), KEY (w))",
                "CREATE TABLE d.sums (w INT PRIMARY KEY, n BIGINT)",
            ])
            .await;
        Some(Home {
            server,
            node,
            machine,
            dr,
            volumes,
            ec2,
        })
    }

    /// Under a lock, as the steps of a snapshot have it, and copied to the other region.
    async fn snapshot(&self) -> Snapshot {
        let timeline = self.node.archive().timelines().await.unwrap()[0].id;
        let mut session = self.server.root().await;
        session.execute("FLUSH TABLES WITH READ LOCK").await.unwrap();
        session.execute("FLUSH LOCAL ENGINE LOGS").await.unwrap();
        for mount_point in self.volumes.values() {
            syncfs(fs::File::open(mount_point).unwrap().as_fd()).unwrap();
        }
        let gtids = session.gtid_executed().await.unwrap();
        let taken = self.ec2.snapshots(&self.machine).await;
        session.execute("UNLOCK TABLES").await.unwrap();
        let variables = session.variables().await.unwrap();
        let text = |name: &str| variables.get(&[name]).unwrap().to_owned();
        let mut volumes = Vec::new();
        for (id, mount_point) in &self.volumes {
            let here = taken[id].clone();
            let there = self.ec2.copy_snapshot(&here, HOME, DR).await;
            let (role, path) = match mount_point.ends_with("data") {
                true => (FolderRole::Datadir, mount_point.join("mysql")),
                false => (FolderRole::Binlog, mount_point.clone()),
            };
            volumes.push(VolumeSnapshot {
                volume_id: id.clone(),
                mount_point: mount_point.clone(),
                filesystem: "xfs".into(),
                partition: None,
                size_gib: GIB as u32,
                holds: vec![HeldFolder { role, path }],
                copies: vec![copy(HOME, here), copy(DR, there)],
            });
        }
        let snapshot = Snapshot {
            format: FORMAT_VERSION,
            id: ID.to_owned(),
            state: SnapshotState::Complete,
            provider: Provider::Ebs,
            timeline,
            server_uuid: self.server.uuid().await,
            server_version: variables.version().to_owned(),
            started_at_us: now_us(),
            finished_at_us: Some(now_us()),
            gtids_before: gtids.clone(),
            gtids_after: Some(gtids),
            errant: GtidSet::new(),
            variables: ["datadir", "log_bin_basename", "innodb_page_size", "innodb_data_file_path"]
                .map(|name| (name.to_owned(), text(name)))
                .into(),
            data_key: String::new(),
            data_bytes: 0,
            stored_bytes: 0,
            stored_sha256: String::new(),
            failure: None,
            step: Some(Step::Copied),
            volumes,
            locked_us: None,
        };
        let archive = self.node.archive();
        let key = keys::snapshot_key(&archive.shard, ID);
        assert!(archive.put_record(&key, &snapshot, Put::IfAbsent).await.unwrap());
        snapshot
    }

    /// The agent takes EBS snapshots, with copies in the other region.
    fn take_snapshots_of_volumes(&self) {
        let volumes: Vec<String> = self
            .volumes
            .iter()
            .map(|(id, at)| format!("\"{}={id}\"", at.display()))
            .collect();
        let section = format!(
            "[ebs]\nregion = \"{HOME}\"\nendpoint = \"{}\"\ndr_region = \"{DR}\"\nvolumes = [{}]\n\
             lock_hold = \"200s\"\ncreate_timeout = \"120s\"\n",
            self.ec2.endpoint,
            volumes.join(", ")
        );
        self.node.reconfigure("[recover]", &format!("{section}[recover]"));
        self.node.reconfigure("[snapshot]", "[snapshot]\nprovider = \"ebs\"");
    }

    /// From now on commands run on the machine of that metadata service.
    fn at(&mut self, metadata: &str) {
        let name = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
        self.node.environment.retain(|(k, _)| k != name);
        self.node.environment.push((name.to_owned(), metadata.to_owned()));
    }

    fn target(&self) -> PathBuf {
        self.ec2.root().join("dr/mysql")
    }

    /// Nothing is left of a recovery that failed.
    fn assert_nothing_left(&self, what: &str) {
        assert_eq!(self.ec2.volumes(DR), Vec::<String>::new(), "{what}");
        let left: Vec<PathBuf> = fs::read_dir(self.ec2.root().join("dr"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{what}: {left:?}");
        assert_eq!(self.ec2.mounts().len(), self.volumes.len(), "{what}");
    }
}

fn copy(region: &str, snapshot_id: String) -> RegionalCopy {
    RegionalCopy {
        region: region.to_owned(),
        snapshot_id: Some(snapshot_id),
        state: CopyState::Complete,
        failure: None,
        encrypted: None,
        kms_key: None,
        tried_at_us: None,
    }
}

/// Writers that go on until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    writers: JoinSet<u64>,
}

impl Load {
    async fn start(server: &Server) -> Load {
        let (stop, mut writers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for w in 0..WRITERS {
            let (stop, mut session) = (stop.clone(), server.root().await);
            writers.spawn(async move {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    for sql in [
                        format!("INSERT INTO d.t (w, v) VALUES ({w}, REPEAT('{rounds}', 100))"),
                        format!("INSERT INTO d.sums VALUES ({w}, 1) ON DUPLICATE KEY UPDATE n = (n * 3 + {rounds}) % 1000003"),
                    ] {
                        session.execute(&sql).await.unwrap();
                    }
                    rounds += 1;
                }
                rounds
            });
        }
        Load { stop, writers }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.writers.join_all().await.iter().all(|rounds| *rounds > 0));
    }
}

async fn rows(server: &Server) -> u64 {
    server.root().await.one::<(u64,)>("SELECT COUNT(*) FROM d.t").await.unwrap().0
}

async fn assert_recovered(target: &Path, wanted: &Truth, gtids: &GtidSet, home: &Server) {
    let recovered = Server::start_on(target, &["--server-id=2"]).await;
    let mut session = recovered.root().await;
    assert_same(&truth(&mut session).await, wanted, "recovered");
    assert_eq!(session.gtid_executed().await.unwrap(), *gtids);
    assert_ne!(recovered.uuid().await, home.uuid().await);
    session.close().await;
    recovered.stop_for_good().await;
}

/// i6, i7: the agent's own snapshot under load, copied to the other region, more load, the home region dead, and the other region recovers
/// what was shipped. EC2 is slow, throttles, fails and loses answers meanwhile.
#[tokio::test]
async fn i7_the_other_region_recovers_from_its_copies() {
    let Some(mut home) = Home::start().await else { return };
    home.take_snapshots_of_volumes();
    home.at(&home.machine.metadata.clone());
    let agent = home.node.agent();
    home.node.wait_snapshots(1).await;
    let load = Load::start(&home.server).await;
    eventually("the load runs", async || rows(&home.server).await > 200).await;
    home.ec2.behave(|b| (b.looks_until_ready, b.page_items) = (2, Some(1)));
    let snapshot = home.node.json(&["snapshot"]).await;
    let gtids_before: GtidSet = snapshot["gtids_before"].as_str().unwrap().parse().unwrap();
    eventually("the copies are complete", async || {
        let snapshots = home.node.archive().snapshots().await.unwrap();
        snapshots
            .iter()
            .any(|s| s.id == snapshot["id"] && s.volumes.iter().all(|v| v.complete_in(DR).is_some()))
    })
    .await;
    let then = rows(&home.server).await;
    eventually("more load", async || rows(&home.server).await > then + 200).await;
    load.stop().await;
    let wanted = truth(&mut home.server.root().await).await;
    let gtids = home.server.gtid_executed().await;
    assert!(gtids_before.count() + 200 < gtids.count());
    home.node.wait_shipped(&home.server).await;
    agent.stop().await;
    home.server.kill().await;
    home.ec2.behave(|b| {
        b.dead.insert(HOME.to_owned());
        b.noise = Some(Noise::new(7, 12));
    });
    home.at(&home.dr.metadata.clone());
    let asked = home.ec2.asked(HOME);

    let target = home.target();
    let plan = home.node.json(&["recover", "--latest", "--dry-run"]).await;
    assert_eq!(plan["snapshot"], snapshot["id"], "{plan}");
    let report = home
        .node
        .json(&["recover", "--latest", "--target-dir", path_text(&target)])
        .await;
    println!("{report}");
    assert_eq!(report["gtid_executed"], gtids.to_string());
    let phases: Vec<&str> = report["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        phases,
        ["plan", "volume", "crash recovery", "start", "replay", "verify", "finish"]
    );

    // The binlogs' volume is gone again, the data's stays, with nothing on it that was the copied server's.
    assert_eq!(home.ec2.asked(HOME), asked, "the home region is not needed");
    assert_eq!(home.ec2.volumes(DR), [report["volume"]["volume_id"].as_str().unwrap()]);
    assert!(home.ec2.mounts().contains(&target));
    assert_eq!(home.ec2.done(DR, "CreateVolume"), 2);
    let beside: Vec<String> = fs::read_dir(home.ec2.root().join("dr"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(beside, ["mysql"]);
    home.server.run().await;
    assert_recovered(&target, &wanted, &gtids, &home.server).await;
}

/// i10: killed wherever it asks EC2 for something, wherever it has changed something, and started again: no volume is made twice, and the end
/// is the same.
#[tokio::test]
async fn i10_a_recovery_onto_volumes_goes_on_where_it_was_killed() {
    let Some(mut home) = Home::start().await else { return };
    let agent = home.node.agent();
    home.node.wait_snapshots(1).await;
    let load = Load::start(&home.server).await;
    eventually("the load runs", async || rows(&home.server).await > 100).await;
    home.snapshot().await;
    load.stop().await;
    home.server.execute(&["INSERT INTO d.t (w, v) VALUES (9, 'the last')"]).await;
    let (wanted, gtids) = (truth(&mut home.server.root().await).await, home.server.gtid_executed().await);
    home.node.wait_shipped(&home.server).await;
    agent.stop().await;
    home.server.kill().await;

    let target = home.target();
    let command = ["recover", "--latest", "--target-dir", path_text(&target)];
    let spawn = || {
        let mut command = home.node.command(&command);
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        command.spawn().unwrap()
    };
    // Done, and the process dies before it hears of it: the first and the second volume, and each one's device.
    for (action, times) in [
        ("CreateVolume", 1),
        ("CreateVolume", 2),
        ("AttachVolume", 1),
        ("AttachVolume", 2),
    ] {
        home.ec2.behave(|b| {
            b.unanswered.insert(action.to_owned());
        });
        let mut child = spawn();
        eventually(action, async || home.ec2.done(DR, action) >= times).await;
        child.kill().await.unwrap();
        home.ec2.behave(|b| b.unanswered.clear());
    }
    let work = target.join(".mysql-pitr-recovery");
    for (what, path) in [
        ("the volume is arranged", work.join("data")),
        ("the copied server comes up", work.join("scratch/mysqld.log")),
    ] {
        let mut child = spawn();
        eventually(what, async || path.exists()).await;
        child.kill().await.unwrap();
    }
    // Another recovery is refused, and harms nothing.
    let other = [
        "recover",
        "--target-gtid-set",
        "00000000-0000-0000-0000-000000000000:1",
        "--target-dir",
        path_text(&target),
    ];
    home.node.fails(&other).await;
    let report = home.node.json(&command).await;
    assert_eq!(home.ec2.done(DR, "CreateVolume"), 2);
    assert_eq!(home.ec2.volumes(DR), [report["volume"]["volume_id"].as_str().unwrap()]);
    home.server.run().await;
    assert_recovered(&target, &wanted, &gtids, &home.server).await;
}

/// What cannot be had is said, with what to do, and nothing is left of the attempt.
#[tokio::test]
async fn a_recovery_onto_volumes_that_fails_leaves_nothing_behind() {
    let Some(home) = Home::start().await else { return };
    let agent = home.node.agent();
    home.node.wait_snapshots(1).await;
    home.snapshot().await;
    home.node.wait_shipped(&home.server).await;
    agent.stop().await;
    let target = home.target();
    let command = ["recover", "--latest", "--target-dir", path_text(&target)];
    let (devices, root) = (
        path_text(&home.dr.device_dir).to_owned(),
        path_text(home.ec2.root()).to_owned(),
    );
    let assert_fails = async |case: &str| {
        let said = home.node.fails(&command).await;
        println!("{case}: {said}");
        let volumes: Vec<String> = said.split("vol-").skip(1).map(|rest| format!("vol-{}", id(rest))).collect();
        let mut names = vec![
            (devices.as_str(), "DEVICES"),
            (root.as_str(), "ROOT"),
            (home.dr.id.as_str(), "INSTANCE"),
        ];
        names.extend(volumes.iter().map(|v| (v.as_str(), "VOLUME")));
        let plain: Vec<String> = volumes.iter().map(|v| v.replace('-', "")).collect();
        names.extend(plain.iter().map(|v| (v.as_str(), "VOLUME")));
        assert_error(case, &said, &names);
        home.assert_nothing_left(case);
    };
    for action in ["CreateVolume", "AttachVolume", "DescribeVolumes"] {
        home.ec2.behave(|b| {
            b.denied.insert(action.to_owned());
        });
        assert_fails(&format!("recover onto volumes: no permission for {action}")).await;
        home.ec2.behave(|b| b.denied.clear());
    }
    home.ec2.behave(|b| b.broken_volumes = true);
    assert_fails("recover onto volumes: a volume in state error").await;
    home.ec2.behave(|b| (b.broken_volumes, b.no_devices) = (false, true));
    assert_fails("recover onto volumes: no device appears").await;
    home.ec2.behave(|b| b.no_devices = false);
    home.node
        .reconfigure("device_timeout", "availability_zone = \"eu-central-1a\"\ndevice_timeout");
    assert_fails("recover onto volumes: another availability zone").await;
    home.node.reconfigure("availability_zone = \"eu-central-1a\"\n", "");

    // Kept, it is found again; and given back with --restart.
    home.ec2.behave(|b| {
        b.denied.insert("AttachVolume".to_owned());
    });
    home.node.fails(&[&command[..], &["--keep-volume"]].concat()).await;
    assert_eq!(home.ec2.volumes(DR).len(), 2);
    home.node.fails(&[&command[..], &["--restart"]].concat()).await;
    home.assert_nothing_left("--restart");
    home.ec2.behave(|b| b.denied.clear());

    // In a region that has no copy another snapshot serves, and where there is none, that is the error.
    home.node
        .reconfigure("device_timeout", "region = \"us-east-1\"\ndevice_timeout");
    let plan = home.node.json(&["recover", "--latest", "--dry-run"]).await;
    let passed_over = &plan["snapshots_passed_over"][0];
    assert_eq!(passed_over["id"], ID, "{plan}");
    let reason = passed_over["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("it has no copy of volume vol-") && reason.ends_with("in us-east-1, only in eu-west-1, eu-central-1"),
        "{reason}"
    );
    let clone = plan["snapshot"].as_str().unwrap();
    let record = home
        .node
        .archive_dir
        .join(keys::snapshot_key(&home.node.archive().shard, clone));
    fs::remove_file(record).unwrap();
    assert_fails("recover onto volumes: no copy in this region").await;
}

/// The rest of a volume's id at the beginning of `text`.
fn id(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(text.len())]
}
