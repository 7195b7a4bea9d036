//! A node as a DBA has it: a server, a configuration, an agent, and the command line.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use mysql_pitr::{
    archive::{listing::Archive, path, path::Path as TimelinePath},
    binlog::gtid::GtidSet,
    recover::{
        resolve::resolve,
        target::{History, Target, path_binlogs},
    },
    store::filesystem::FilesystemStore,
    support::clock::WallClock,
};
use nix::{sys::signal::Signal, unistd::Pid};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::mysql::{PASSWORD, Server, copy_folder, mysqld};

pub const SHARD: &str = "test-shard";
/// For anything that a healthy agent does within a second or two.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Events that were enabled at the recovered moment would change the recovered server before a test has looked at it.
const RECOVERED_OPTIONS: [&str; 2] = ["--server-id=2", "--event-scheduler=OFF"];
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Folders and a configuration around an archive in a folder.
pub struct Node {
    pub dir: TempDir,
    pub config: PathBuf,
    pub archive_dir: PathBuf,
    /// For every command, the agent's too.
    pub environment: Vec<(String, String)>,
}

impl Node {
    /// For `server`, with an archive of its own. `extra`: further lines of TOML, sections included.
    pub fn new(server: &Server, extra: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let archive_dir = dir.path().join("archive");
        fs::create_dir(&archive_dir).unwrap();
        Node::with_archive(&server.socket, dir, archive_dir, extra)
    }

    /// With an archive that is there already, and no server.
    pub fn without_server(archive_dir: &Path, extra: &str) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nobody");
        Node::with_archive(&socket, dir, archive_dir.to_owned(), extra)
    }

    /// For another server of the same shard.
    pub fn beside(&self, server: &Server) -> Node {
        self.beside_with(server, "")
    }

    /// The same, with further lines of TOML.
    pub fn beside_with(&self, server: &Server, extra: &str) -> Node {
        Node::with_archive(&server.socket, tempfile::tempdir().unwrap(), self.archive_dir.clone(), extra)
    }

    fn with_archive(socket: &Path, dir: TempDir, archive_dir: PathBuf, extra: &str) -> Node {
        let (root, staging) = (dir.path(), dir.path().join("staging"));
        fs::create_dir(&staging).unwrap();
        fs::write(root.join("password"), PASSWORD).unwrap();
        let config = root.join("mysql-pitr.toml");
        let text = format!(
            "shard = \"{SHARD}\"\n\
             [mysql]\nsocket = \"{}\"\nuser = \"mysql_pitr\"\npassword_file = \"{}\"\n\
             [store]\nurl = \"file://{}\"\n\
             [snapshot]\nschedule = \"off\"\nstaging_dir = \"{}\"\n\
             [recover]\nmysqld = \"{}\"\n\
             [state]\npath = \"{}\"\n{}",
            socket.display(),
            root.join("password").display(),
            archive_dir.display(),
            staging.display(),
            mysqld().display(),
            root.join("state.db").display(),
            with_defaults(extra),
        );
        fs::write(&config, text).unwrap();
        Node {
            config,
            archive_dir,
            dir,
            environment: Vec::new(),
        }
    }

    /// Another one with the same archive and configuration, to be damaged.
    pub fn copy(&self) -> Node {
        self.copy_into(&std::env::temp_dir())
    }

    pub fn copy_into(&self, parent: &Path) -> Node {
        let dir = tempfile::tempdir_in(parent).unwrap();
        copy_folder(self.dir.path(), dir.path());
        let node = Node {
            config: dir.path().join(self.config.file_name().unwrap()),
            archive_dir: dir.path().join(self.archive_dir.file_name().unwrap()),
            dir,
            environment: self.environment.clone(),
        };
        node.reconfigure(path_text(self.dir.path()), path_text(node.dir.path()));
        node
    }

    /// Replaces a text of the configuration, wherever it occurs; it must.
    pub fn reconfigure(&self, old: &str, new: &str) {
        let text = fs::read_to_string(&self.config).unwrap();
        assert!(text.contains(old), "`{old}` is not in:\n{text}");
        fs::write(&self.config, text.replace(old, new)).unwrap();
    }

    pub fn state_path(&self) -> PathBuf {
        self.dir.path().join("state.db")
    }

    /// Starts `mysql-pitr agent`.
    pub fn agent(&self) -> Agent {
        let log = self.dir.path().join("agent.log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let child = self
            .command(&["agent"])
            .stderr(file)
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Agent { child, log }
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.unwrap()
    }

    /// Runs a command that must succeed, and returns its standard output.
    pub async fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "mysql-pitr {arguments:?} failed: {err}\n{out}");
        out.into_owned()
    }

    /// Runs a command that must fail, and returns what it says.
    pub async fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(!output.status.success(), "mysql-pitr {arguments:?} should have failed: {out}");
        err.into_owned()
    }

    pub async fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let out = self.ok(&[arguments, &["--json"]].concat()).await;
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }

    /// A command, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mysql-pitr"));
        command.arg("--config").arg(&self.config).args(arguments).stdin(Stdio::null());
        command.envs(self.environment.iter().cloned());
        command
    }

    pub fn archive(&self) -> Archive {
        let store = Arc::new(FilesystemStore::open(&self.archive_dir).unwrap());
        Archive {
            store,
            shard: SHARD.to_owned().try_into().unwrap(),
            clock: Arc::new(WallClock),
        }
    }

    /// What the archive's current path holds.
    pub async fn archived_gtids(&self) -> anyhow::Result<GtidSet> {
        let archive = self.archive();
        let timelines = archive.timelines().await?;
        if path::tip(&timelines).is_none() {
            return Ok(GtidSet::new());
        }
        let path = TimelinePath::find(&timelines, None)?;
        let survey = archive.survey().await?;
        let binlogs = path_binlogs(&path, survey.binlogs);
        let history = History::new(&path, &binlogs, &survey.faults);
        Ok(resolve(&archive, history, &Target::Latest).await?.gtids)
    }

    /// Waits until everything that `server` has executed is in the archive.
    pub async fn wait_shipped(&self, server: &Server) {
        let wanted = server.gtid_executed().await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let has = self.archived_gtids().await;
            if has.as_ref().is_ok_and(|has| wanted.is_subset(has)) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "not shipped within {PATIENCE:?}: wanted {wanted}, archived {has:?}"
            );
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until the archive has `count` complete snapshots.
    pub async fn wait_snapshots(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let snapshots = self.archive().snapshots().await.unwrap();
            let complete = snapshots.iter().filter(|s| s.gtids_after.is_some()).count();
            if complete >= count {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{complete} of {count} snapshots within {PATIENCE:?}: {snapshots:?}"
            );
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until the archive has `count` sealed binlogs.
    pub async fn wait_sealed(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let sealed = self
                .archive()
                .binlogs()
                .await
                .unwrap()
                .iter()
                .filter(|b| b.gtids().is_some())
                .count();
            if sealed >= count {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{sealed} of {count} sealed binlogs within {PATIENCE:?}"
            );
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// A folder name for a recovery, in this node's folder.
    pub fn target(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `recover` with `arguments` into a new folder, and a server on it.
    pub async fn recover(&self, name: &str, arguments: &[&str]) -> (Server, serde_json::Value) {
        let target = self.target(name);
        let report = self
            .json(&[&["recover", "--target-dir", path_text(&target)], arguments].concat())
            .await;
        (Server::start_on(&target, &RECOVERED_OPTIONS).await, report)
    }

    /// As [`Node::recover`], and the most memory that `recover` itself held, in bytes.
    pub async fn recover_measured(&self, name: &str, arguments: &[&str]) -> (Server, u64) {
        let target = self.target(name);
        let mut child = self
            .command(&[&["recover", "--target-dir", path_text(&target)], arguments].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut peak_bytes = 0;
        let status = loop {
            // A zombie has no memory left to tell of. The mark only rises, and verifying takes seconds after the replay.
            peak_bytes = child
                .id()
                .and_then(peak_memory_bytes)
                .map_or(peak_bytes, |now| now.max(peak_bytes));
            match timeout(LOOK_INTERVAL, child.wait()).await {
                Ok(status) => break status.unwrap(),
                Err(_) => continue,
            }
        };
        assert!(status.success(), "recover {arguments:?} ended with {status}");
        (Server::start_on(&target, &RECOVERED_OPTIONS).await, peak_bytes)
    }
}

/// Agents of tests ship quickly, and do not contend for one port.
fn with_defaults(extra: &str) -> String {
    let mut text = extra.to_owned();
    for (section, line) in [("[ship]", "flush_interval = \"100ms\""), ("[http]", "listen = \"off\"")] {
        if !extra.contains(section) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&format!("{section}\n{line}\n"));
        }
    }
    text
}

/// The most memory that a process has held so far.
pub fn peak_memory_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

pub fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A running agent. Dropped, it is killed.
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// SIGTERM, and its end.
    pub async fn stop(mut self) {
        let pid = Pid::from_raw(self.child.id().expect("the agent runs").cast_signed());
        nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
        let status = timeout(PATIENCE, self.child.wait()).await.expect("the agent stops").unwrap();
        assert!(status.success(), "the agent ended with {status}:\n{}", self.log());
    }

    /// kill -9.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("the agent runs")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// An agent that did what it should says nothing that a human must look at.
    pub fn assert_quiet(&self) {
        let log = self.log();
        let loud: Vec<&str> = log
            .lines()
            .filter(|l| l.contains(" WARN ") || l.contains(" ERROR "))
            .collect();
        assert!(loud.is_empty(), "the agent's log:\n{}", loud.join("\n"));
    }
}
