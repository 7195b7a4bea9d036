//! Recovery from snapshots of EBS volumes, in another region than the one that died.
//!
//! The stand-in of `support::ebs` copies blocks, so that what a recovery begins with is what a running server had written at one instant.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Stdio,
};

use mysql_pitr::{
    archive::{
        keys,
        records::{FORMAT_VERSION, FolderRole, HeldFolder, Provider, Snapshot, SnapshotState, Step},
    },
    binlog::gtid::GtidSet,
    store::Put,
    support::clock::now_us,
};
use nix::unistd::syncfs;

use crate::support::{
    ebs::{Ec2, Machine, Noise, volume_ids},
    eventually,
    golden::assert_error,
    load::{LOAD_TABLES, Load, wait_rows},
    mysql::Server,
    node::{Node, path_text},
    story::assert_same,
    truth::{Truth, truth},
};

const HOME: &str = "eu-west-1";
const DR: &str = "eu-central-1";
const ID: &str = "20261121T101403.120000Z-0a1b2c3d";

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
        let volumes = ec2.mounted_volumes(&machine, &["data", "logs"]).await;
        let logs = format!("--log-bin={}", ec2.root().join("logs/mysql-bin").display());
        // Checkpoints far behind: most of the work is in the redo log only.
        let server = Server::start_at(&ec2.root().join("data/mysql"), &[&logs, "--innodb-redo-log-capacity=64M"]).await;
        let node = Node::new(&server, &ec2.recover_section(&dr, "device_timeout = \"2s\""));
        fs::create_dir(ec2.root().join("dr")).unwrap();
        server.execute(&["GRANT RELOAD ON *.* TO mysql_pitr@localhost"]).await;
        server.execute(&LOAD_TABLES).await;
        let mut home = Home {
            server,
            node,
            machine,
            dr,
            volumes,
            ec2,
        };
        home.move_to(&home.dr.clone());
        Some(home)
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
        let mut volumes = self.ec2.copied(&self.machine, &self.volumes, DR).await;
        session.execute("UNLOCK TABLES").await.unwrap();
        let variables = session.variables().await.unwrap();
        let text = |name: &str| variables.get(&[name]).unwrap().to_owned();
        for volume in &mut volumes {
            let (role, path) = match volume.mount_point.ends_with("data") {
                true => (FolderRole::Datadir, volume.mount_point.join("mysql")),
                false => (FolderRole::Binlog, volume.mount_point.clone()),
            };
            volume.holds = vec![HeldFolder { role, path }];
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
        let section = self.ec2.section(&self.machine, &self.volumes, DR);
        self.node.reconfigure("[recover]", &format!("{section}[recover]"));
        self.node.reconfigure("[snapshot]", "[snapshot]\nprovider = \"ebs\"");
    }

    /// From now on commands run on that machine.
    fn move_to(&mut self, machine: &Machine) {
        self.node.environment = machine.environment();
        // What a killed recovery leaves there goes with the test's.
        let scratch = path_text(self.node.dir.path()).to_owned();
        self.node.environment.push(("TMPDIR".to_owned(), scratch));
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
    home.move_to(&home.machine.clone());
    let agent = home.node.agent();
    home.node.wait_snapshots(1).await;
    let load = Load::start(&home.server).await;
    wait_rows(&home.server, 200).await;
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
    wait_rows(&home.server, 200).await;
    load.stop().await;
    let wanted = truth(&mut home.server.root().await).await;
    let gtids = home.server.gtid_executed().await;
    assert!(gtids_before.count() + 200 < gtids.count());
    home.node.wait_shipped(&home.server).await;
    agent.stop().await;
    home.server.kill().await;
    home.ec2.end_region(HOME);
    home.ec2.behave(|b| b.noise = Some(Noise::new(7, 12)));
    home.move_to(&home.dr.clone());
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
/// is the same. So it is after a start of the machine, on other volumes.
#[tokio::test]
async fn i10_a_recovery_onto_volumes_goes_on_where_it_was_killed() {
    let Some(mut home) = Home::start().await else { return };
    let agent = home.node.agent();
    home.node.wait_snapshots(1).await;
    let load = Load::start(&home.server).await;
    wait_rows(&home.server, 100).await;
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
    // Where it gives back what only the first start of the copy needs.
    home.ec2.behave(|b| {
        b.unanswered.insert("DetachVolume".to_owned());
    });
    let mut child = spawn();
    eventually("the binlogs' volume is detached", async || {
        home.ec2.done(DR, "DetachVolume") == 1
    })
    .await;
    child.kill().await.unwrap();
    home.ec2.behave(|b| b.unanswered.clear());
    assert_eq!(home.ec2.done(DR, "CreateVolume"), 2);

    // After a start of the machine, what was written last may be torn: others are made, and those given back.
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let journal = fs::read_to_string(work.join("recovery.json")).unwrap();
    let another = journal.replace(boot_id.trim(), "00000000-0000-0000-0000-000000000000");
    assert_ne!(journal, another);
    fs::write(work.join("recovery.json"), another).unwrap();
    fs::write(work.join("data/ibdata1"), b"torn").unwrap();
    let report = home.node.json(&command).await;
    assert_eq!(home.ec2.done(DR, "CreateVolume"), 4);
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
        let volumes = volume_ids(&said);
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
