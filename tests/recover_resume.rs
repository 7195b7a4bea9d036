//! i10: a recovery that dies anywhere and is started again ends where one that lived would have.
//!
//! `MYSQL_PITR_SEED` repeats a run, as far as clocks allow; `MYSQL_PITR_KILLS` sets how often the recovery is killed at random
//! instants before it may end.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use crate::support::{
    eventually,
    mysql::Server,
    node::{Node, PATIENCE, path_text},
    skipped,
    story::assert_same,
    truth::{Truth, truth},
};
use mysql_pitr::binlog::gtid::GtidSet;
use nix::{
    fcntl::posix_fallocate,
    mount::{MsFlags, mount, umount},
    sys::signal::Signal,
    unistd::{Pid, geteuid},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{process::Child, time::timeout};

const KILLS_DEFAULT: u64 = 8;
const ROUNDS: u32 = 60;
const INSERTS_A_ROUND: u32 = 80;
const RECOVERED: [&str; 1] = ["--server-id=2"];

/// An archive whose replay takes a few seconds, and what its end holds.
struct Archived {
    node: Node,
    truth: Truth,
    gtids: GtidSet,
}

/// Small transactions with DDL, accounts and whole databases in between: what is not one InnoDB transaction is where a kill hurts.
async fn archived() -> Archived {
    let server = Server::start(&[
        "--max-binlog-size=262144",
        "--innodb-flush-log-at-trx-commit=0",
        "--sync-binlog=0",
    ])
    .await;
    server
        .execute(&[
            "CREATE DATABASE r",
            "CREATE TABLE r.t (id INT PRIMARY KEY AUTO_INCREMENT, round INT, v VARCHAR(500), KEY (round))",
            "CREATE TABLE r.sums (round INT PRIMARY KEY, n BIGINT)",
        ])
        .await;
    let mut node = Node::new(&server, "");
    let agent = node.agent();
    node.wait_snapshots(1).await;
    let mut session = server.root().await;
    for round in 0..ROUNDS {
        let mut sql = String::new();
        for i in 0..INSERTS_A_ROUND {
            sql += &format!("INSERT INTO r.t (round, v) VALUES ({round}, REPEAT('{i}', 100));");
            sql += &format!("INSERT INTO r.sums VALUES ({round}, {i}) ON DUPLICATE KEY UPDATE n = (n * 3 + {i}) % 1000003;");
        }
        sql += &format!("CREATE DATABASE d{round}; CREATE TABLE d{round}.c (PRIMARY KEY (id)) AS SELECT * FROM r.t;");
        sql += &format!("ALTER TABLE r.t ADD COLUMN c{round} INT DEFAULT {round};");
        sql += &format!("CREATE USER u{round}@localhost; GRANT SELECT ON d{round}.* TO u{round}@localhost;");
        if round >= 3 {
            let old = round - 3;
            sql += &format!("DROP DATABASE d{old}; DROP USER u{old}@localhost; ALTER TABLE r.t DROP COLUMN c{old};");
            sql += &format!("DELETE FROM r.t WHERE round = {old};");
        }
        session.execute_within(&sql, PATIENCE).await.unwrap();
    }
    node.wait_shipped(&server).await;
    agent.stop().await;
    let (truth, gtids) = (truth(&mut session).await, session.gtid_executed().await.unwrap());
    session.close().await;
    server.stop_for_good().await;
    // A process that is killed leaves its folder for sockets behind: here it goes with the test's.
    node.environment.push(("TMPDIR".into(), path_text(node.dir.path()).into()));
    Archived { node, truth, gtids }
}

impl Archived {
    async fn assert_recovered(&self, target: &Path, what: &str) {
        let recovered = Server::start_on(target, &RECOVERED).await;
        let mut session = recovered.root().await;
        assert_same(&truth(&mut session).await, &self.truth, what);
        assert_eq!(session.gtid_executed().await.unwrap(), self.gtids, "{what}");
        drop(recovered);
        fs::remove_dir_all(target).unwrap();
    }

    fn spawn(&self, target: &Path) -> Child {
        self.node
            .command(&["recover", "--latest", "--target-dir", path_text(target)])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    async fn finish(&self, target: &Path) -> serde_json::Value {
        self.node
            .json(&["recover", "--latest", "--target-dir", path_text(target)])
            .await
    }
}

/// How far the journal says that a recovery is.
fn reached(target: &Path) -> Option<String> {
    let text = fs::read_to_string(target.join(".mysql-pitr-recovery/recovery.json")).ok()?;
    let journal: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(journal["reached"].as_str()?.to_owned())
}

/// The mysqld that serves a folder below `folder`, if one does.
fn mysqld_in(folder: &Path) -> Option<Pid> {
    let wanted = format!("--datadir={}", path_text(folder));
    fs::read_dir("/proc").unwrap().flatten().find_map(|process| {
        let line = fs::read(process.path().join("cmdline")).ok()?;
        let is_it = String::from_utf8_lossy(&line).contains(&wanted);
        let pid = process.file_name().to_str()?.parse().ok()?;
        is_it.then(|| Pid::from_raw(pid))
    })
}

/// Waits until the process that was started at `since` replays (an interrupted one left relay logs too), or is past that.
async fn replay_runs(target: &Path, since: SystemTime) {
    let scratch = target.join(".mysql-pitr-recovery/scratch");
    eventually("the replay runs", async || {
        let is_past = matches!(reached(target).as_deref(), Some("replayed" | "verified"));
        is_past
            || fs::read_dir(&scratch).is_ok_and(|entries| {
                entries.flatten().any(|e| {
                    let is_fresh = e.metadata().and_then(|m| m.modified()).is_ok_and(|at| at > since);
                    is_fresh && e.file_name().to_string_lossy().starts_with("relay.0")
                })
            })
    })
    .await;
}

fn number_from_env(name: &str) -> Option<u64> {
    env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

#[tokio::test]
async fn i10_killed_anywhere_a_recovery_converges() {
    let seed = number_from_env("MYSQL_PITR_SEED").unwrap_or_else(|| rand::rng().random());
    let kills = number_from_env("MYSQL_PITR_KILLS").unwrap_or(KILLS_DEFAULT);
    println!("MYSQL_PITR_SEED={seed} MYSQL_PITR_KILLS={kills}");
    let mut rng = StdRng::seed_from_u64(seed);
    let archived = archived().await;
    let target = archived.node.target("target");

    // In each phase, as soon as it is reached.
    for phase in ["begun", "unpacked", "replayed", "verified"] {
        let mut child = archived.spawn(&target);
        eventually(phase, async || {
            reached(&target).is_some_and(|r| r == phase) || !is_running(&mut child)
        })
        .await;
        let _ = child.kill().await;
        println!("killed at `{phase}`: {:?}", reached(&target));
        let is_whole = target.join("mysql.ibd").exists();
        assert!(
            !is_whole || reached(&target).is_none_or(|r| r == "verified"),
            "half a target looks whole"
        );
    }
    if reached(&target).is_some() {
        let report = archived.finish(&target).await;
        assert_eq!(report["resumed_after"], "verified");
    }
    archived.assert_recovered(&target, "killed in each phase").await;

    // At random instants, most of them in the replay; of the process, and of the server alone.
    for kill in 0..kills {
        let since = SystemTime::now();
        let mut child = archived.spawn(&target);
        let mut wait = Duration::from_millis(rng.random_range(0..4000));
        if rng.random_bool(0.8) {
            tokio::select! {
                () = replay_runs(&target, since) => {}
                _ = child.wait() => {}
            }
            wait /= 4;
        }
        let mut server_alone = rng.random_bool(0.3);
        if timeout(wait, child.wait()).await.is_ok() {
            println!("kill {kill}: it was done already");
            break;
        }
        let data = target.join(".mysql-pitr-recovery/data");
        let server = mysqld_in(&data);
        match server {
            Some(pid) if server_alone => {
                let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
                let output = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
                println!("{}", String::from_utf8_lossy(&output.stderr));
            }
            _ => {
                server_alone = false;
                child.kill().await.unwrap();
            }
        }
        println!(
            "kill {kill} after {wait:?}, the server alone: {server_alone}, at {:?}",
            reached(&target)
        );
    }
    if reached(&target).is_some() {
        archived.finish(&target).await;
    }
    archived.assert_recovered(&target, &format!("seed {seed}")).await;

    // By a signal, which a person gives.
    let since = SystemTime::now();
    let child = archived.spawn(&target);
    replay_runs(&target, since).await;
    let pid = Pid::from_raw(child.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGINT).unwrap();
    let output = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("error: interrupted"), "{said}");
    assert_eq!(reached(&target).as_deref(), Some("unpacked"));
    let data = target.join(".mysql-pitr-recovery/data");
    eventually("its server is gone", async || mysqld_in(&data).is_none()).await;
    let report = archived.finish(&target).await;
    assert_eq!(report["resumed_after"], "unpacked");
    archived.assert_recovered(&target, "interrupted").await;

    i10_after_a_start_of_the_machine_the_snapshot_is_unpacked_again(&archived, &target).await;
    i10_a_full_volume_is_named_and_the_recovery_goes_on_once_there_is_room(&archived).await;
}

/// What a machine that lost its power had written is not trusted.
async fn i10_after_a_start_of_the_machine_the_snapshot_is_unpacked_again(archived: &Archived, target: &Path) {
    let since = SystemTime::now();
    let mut child = archived.spawn(target);
    replay_runs(target, since).await;
    child.kill().await.unwrap();
    let work = target.join(".mysql-pitr-recovery");
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let journal = fs::read_to_string(work.join("recovery.json")).unwrap();
    let another = journal.replace(boot_id.trim(), "00000000-0000-0000-0000-000000000000");
    assert_ne!(journal, another);
    fs::write(work.join("recovery.json"), another).unwrap();
    // As a torn page would be: it must not be read.
    fs::write(work.join("data/ibdata1"), b"torn").unwrap();
    let report = archived.finish(target).await;
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(warning.contains("the snapshot is unpacked again"), "{warning}");
    archived.assert_recovered(target, "after a start of the machine").await;
}

/// A volume of its own; dropped, it is unmounted.
struct Volume(PathBuf);

impl Volume {
    fn mount(at: PathBuf, bytes: u64) -> nix::Result<Volume> {
        fs::create_dir(&at).unwrap();
        let size = format!("size={bytes}");
        mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))?;
        Ok(Volume(at))
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = umount(&self.0);
    }
}

async fn i10_a_full_volume_is_named_and_the_recovery_goes_on_once_there_is_room(archived: &Archived) {
    const VOLUME_BYTES: u64 = 1 << 30;
    if !geteuid().is_root() {
        return skipped("only root can mount a volume to fill");
    }
    let volume = match Volume::mount(archived.node.target("volume"), VOLUME_BYTES) {
        Ok(volume) => volume,
        Err(e) => return skipped(&format!("a volume to fill cannot be mounted here: {e}")),
    };
    let target = volume.0.join("target");
    let command = ["recover", "--latest", "--target-dir", path_text(&target)];
    let since = SystemTime::now();
    let child = archived.spawn(&target);
    replay_runs(&target, since).await;
    let filler = volume.0.join("filler");
    fill(&filler, VOLUME_BYTES);
    let output = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(!output.status.success(), "it was done before the volume was full: {said}");
    assert!(
        said.contains(&format!("error: the volume of {} is full", target.display())),
        "{said}"
    );
    assert!(
        said.contains("hint: make room on it, and start the same command again"),
        "{said}"
    );
    assert!(!target.join("mysql.ibd").exists());
    let at = reached(&target).unwrap();
    let again = archived.node.fails(&command).await;
    assert!(again.contains("hint: make room on it"), "{again}");
    fs::remove_file(&filler).unwrap();
    let report = archived.finish(&target).await;
    assert_eq!(report["resumed_after"], *at);
    archived.assert_recovered(&target, "after a full volume").await;
}

/// Takes whatever is free.
fn fill(path: &Path, volume_bytes: u64) {
    const BLOCK_BYTES: u64 = 4096;
    let file = fs::File::create(path).unwrap();
    let (mut at, mut step) = (0u64, volume_bytes / 2);
    while step >= BLOCK_BYTES {
        // All of it or nothing.
        match posix_fallocate(&file, at.cast_signed(), step.cast_signed()) {
            Ok(()) => at += step,
            Err(_) => step /= 2,
        }
    }
}

fn is_running(child: &mut Child) -> bool {
    child.try_wait().unwrap().is_none()
}
