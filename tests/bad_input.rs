//! Servers, configurations and disks as they should not be: each ends in one clear error that says what to do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::support::{
    eventually,
    golden::{assert_error, assert_text},
    mysql::{PASSWORD, Server},
    node::{Node, SHARD, path_text},
    shipped::objects,
    skipped,
};
use nix::unistd::geteuid;

const MAKE_TABLE: [&str; 2] = [
    "CREATE DATABASE d",
    "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB)",
];
const INSERT: &str = "INSERT INTO d.t (v) VALUES ('x')";

fn names<'a>(server: &'a Server, node: &'a Node) -> Vec<(&'a str, &'static str)> {
    vec![
        (path_text(&server.socket), "SOCKET"),
        (path_text(&server.datadir), "DATADIR"),
        (path_text(&node.archive_dir), "/ARCHIVE"),
        (path_text(node.dir.path()), "/NODE"),
    ]
}

/// What `check` says of everything that is wrong.
async fn assert_check_fails(case: &str, server: &Server, node: &Node) {
    let output = node.run(&["check"]).await;
    assert!(!output.status.success(), "{case}");
    let (mut failed, mut shown) = (String::new(), false);
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        shown = line.starts_with("FAILED") || (shown && line.starts_with(' '));
        if shown {
            failed += &format!("{line}\n");
        }
    }
    let said = failed + &String::from_utf8_lossy(&output.stderr);
    assert_text(case, &said, &names(server, node));
}

/// The first warning or error of a running agent's log, without its time.
async fn agent_says(node: &Node) -> String {
    let agent = node.agent();
    let complaint = |log: &str| {
        let at = log.lines().position(|l| l.contains(" WARN ") || l.contains(" ERROR "))?;
        let lines: Vec<&str> = log.lines().skip(at).take(2).collect();
        let first = lines[0].split_once(' ')?.1.trim_start();
        // A hint stands on a line of its own.
        let hint = lines.get(1).filter(|l| l.starts_with(" hint:"));
        Some(hint.map_or(first.to_owned(), |hint| format!("{first}\n{hint}")))
    };
    eventually("the agent complains", async || complaint(&agent.log()).is_some()).await;
    let said = complaint(&agent.log()).unwrap();
    agent.stop().await;
    said
}

/// Transactions without GTIDs cannot be archived, and an agent that ships nothing says so.
#[tokio::test]
async fn a_server_without_gtids_is_refused() {
    let server = Server::start(&["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"]).await;
    let node = Node::new(&server, "");
    server.execute(&MAKE_TABLE).await;
    assert_check_fails("gtid_mode=OFF: check", &server, &node).await;
    let said = node.fails(&["snapshot"]).await;
    assert_error("gtid_mode=OFF: snapshot", &said, &names(&server, &node));
    assert_text("gtid_mode=OFF: agent", &agent_says(&node).await, &names(&server, &node));
    assert_eq!(
        objects(&node.archive_dir.join(SHARD)),
        Vec::<PathBuf>::new(),
        "nothing is half made"
    );
}

#[tokio::test]
async fn mistakes_of_the_configuration_are_named() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let password = node.dir.path().join("password");
    fs::write(&password, "another one").unwrap();
    let names = names(&server, &node);
    let said = node.fails(&["snapshot"]).await;
    assert!(!said.contains("another one"), "{said}");
    assert_error("password: wrong, snapshot", &said, &names);
    assert_check_fails("password: wrong, check", &server, &node).await;
    assert_text("password: wrong, agent", &agent_says(&node).await, &names);
    fs::remove_file(&password).unwrap();
    assert_error("password: no file", &node.fails(&["snapshot"]).await, &names);
    fs::write(&password, PASSWORD).unwrap();

    let agent = node.agent();
    node.wait_snapshots(1).await;
    assert_error("agent: a second one", &node.fails(&["agent"]).await, &names);
    agent.stop().await;

    let wrong = [
        ("config: an unknown key", "flush_interval", "flush_intervall"),
        ("config: a duration without a unit", "\"100ms\"", "\"100\""),
        ("config: an unknown codec", "[ship]\n", "[ship]\ncodec = \"lz4\"\n"),
        ("config: no shard", "shard = ", "# shard = "),
        ("config: a shard with a slash", "\"test-shard\"", "\"test/shard\""),
        ("config: a URL of no kind", "\"file://", "\"ftp://"),
        ("store: the folder is not there", "/archive\"", "/no-archive\""),
        ("mysql: nobody listens", path_text(&server.socket), "/no/such/socket"),
    ];
    for (case, right, mistake) in wrong {
        let node = node.copy();
        node.reconfigure(right, mistake);
        let mut names = self::names(&server, &node);
        names.insert(0, (path_text(&server.socket), "SOCKET"));
        assert_error(case, &node.fails(&["snapshot"]).await, &names);
    }
    fs::remove_file(&node.config).unwrap();
    assert_error("config: no file", &node.fails(&["list"]).await, &names);
}

/// What a clone would leave out, or cannot do, is refused before it begins; by the agent on request as by the command alone.
#[tokio::test]
async fn snapshots_that_would_be_wrong_are_refused() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let names = names(&server, &node);
    server.execute(&MAKE_TABLE).await;
    server
        .execute(&["CREATE TABLE d.old (id INT) ENGINE=MyISAM", "INSERT INTO d.old VALUES (1)"])
        .await;
    assert_error("snapshot: a MyISAM table", &node.fails(&["snapshot"]).await, &names);
    let agent = node.agent();
    node.wait_shipped(&server).await;
    assert_error(
        "snapshot: a MyISAM table, by the agent",
        &node.fails(&["snapshot"]).await,
        &names,
    );
    agent.stop().await;
    let accepting = node.copy();
    accepting.reconfigure("[snapshot]\n", "[snapshot]\naccept_empty = [\"d.old\"]\n");
    accepting.ok(&["snapshot"]).await;
    server.execute(&["DROP TABLE d.old"]).await;

    server.execute(&["UNINSTALL PLUGIN clone"]).await;
    assert_error("snapshot: no clone plugin", &node.fails(&["snapshot"]).await, &names);
    assert_check_fails("check: no clone plugin", &server, &node).await;
    server
        .execute(&["SET sql_log_bin = 0", "INSTALL PLUGIN clone SONAME 'mysql_clone.so'"])
        .await;
    fs::remove_dir(node.dir.path().join("staging")).unwrap();
    assert_error("snapshot: no staging folder", &node.fails(&["snapshot"]).await, &names);
    fs::create_dir(node.dir.path().join("staging")).unwrap();
    server
        .execute(&["SET sql_log_bin = 0", "REVOKE BACKUP_ADMIN ON *.* FROM mysql_pitr@localhost"])
        .await;
    assert_error("snapshot: no privilege", &node.fails(&["snapshot"]).await, &names);
    assert_check_fails("check: no privilege", &server, &node).await;
}

/// A small disk. Dropped, it is unmounted.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where that cannot be had, which is said.
    fn mount(at: &Path, size: &str) -> Option<SmallDisk> {
        if !geteuid().is_root() {
            skipped("only root can mount a small disk to fill");
            return None;
        }
        fs::create_dir_all(at).unwrap();
        let size = format!("size={size}");
        let mut mount = Command::new("mount");
        let mounted = mount
            .args(["-t", "tmpfs", "-o", &size, "tmpfs", path_text(at)])
            .stderr(Stdio::null());
        if !mounted.status().is_ok_and(|s| s.success()) {
            skipped("mount -t tmpfs does not work here: no disk to fill");
            return None;
        }
        Some(SmallDisk(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// i12: neither a full store nor a full target leaves anything half made, and shipping goes on once there is room.
#[tokio::test]
async fn i12_full_disks_are_named_and_lose_nothing() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let Some(_store) = SmallDisk::mount(&node.archive_dir, "4m") else {
        return;
    };
    let names = names(&server, &node);
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    node.wait_snapshots(1).await;
    node.wait_shipped(&server).await;
    let ballast = node.archive_dir.join("ballast");
    fs::write(&ballast, vec![0; 8 << 20]).expect_err("the disk is full");
    server.execute(&[INSERT]).await;
    agent.stop().await;
    assert_error("store: full", &node.fails(&["snapshot"]).await, &names);
    assert_eq!(left_in(&node.archive_dir.join(".tmp")), 0, "temporary files are removed");
    fs::remove_file(&ballast).unwrap();
    let agent = node.agent();
    node.wait_shipped(&server).await;

    let target = node.target("target");
    let Some(_target) = SmallDisk::mount(&target, "100m") else {
        return;
    };
    let said = node.fails(&["recover", "--latest", "--target-dir", path_text(&target)]).await;
    assert_error("target folder: too small", &said, &names);
    assert_eq!(left_in(&target), 0, "what cannot be begun leaves nothing");
    agent.stop().await;
}

fn left_in(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}
