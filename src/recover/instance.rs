//! The server that is being recovered: started so that nothing but the replay can change it.
//!
//! It listens on a socket in a folder that nobody else may enter, ignores the settings that were persisted in the data
//! (they beat the command line), runs no events, keeps no binlog of its own (so that nothing it does takes a GTID), and its
//! server_id is random: transactions that carry the replica's own would be skipped. Nobody knows the passwords in the
//! data, so an init file makes an account for us; `finish` drops it.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use rand::Rng;
use tokio::time::Instant;

use crate::{
    archive::records::Snapshot,
    mysql::{
        endpoint::{Address, Endpoint, Tls},
        process::Mysqld,
        query::{Session, version_number},
    },
    support::{
        durable,
        hint::{OrHint, message},
        secret::Secret,
    },
};

use super::{run_as::RunAs, workdir::Workdir};

/// Crash recovery of a large buffer pool's worth of redo log takes minutes.
const START_TIMEOUT: Duration = Duration::from_secs(1800);
/// A clean shutdown writes every dirty page.
const STOP_TIMEOUT: Duration = Duration::from_secs(1800);
const DEATH_LOOK_INTERVAL: Duration = Duration::from_millis(100);
const ACCOUNT: &str = "mysql_pitr_recover";
const LARGEST_PACKET: &str = "1G";
const BUFFER_POOL_BYTES_MIN: u64 = 128 << 20;
/// Of the memory that is available, so that another server on the machine goes on undisturbed.
const BUFFER_POOL_SHARE: u64 = 4;
/// The archive may come faster than it is applied: the rest waits in the archive, not on the target's volume. At least twice
/// the size of one file, or the server could wait for itself.
pub const RELAY_LOG_BYTES_MAX: u64 = 1 << 30;
const RELAY_LOG_FILE_BYTES: u64 = 256 << 20;
/// `SHOW REPLICA STATUS` and the `replica_*` options exist from here on.
const VERSION_MIN: u32 = 80_026;

/// For what the server is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// To recover from the crash that a copy of volumes is, by the copied server's own binlogs.
    CrashRecovery { log_bin: Option<LogBin> },
    /// Durability is relaxed: the snapshot is the safety net.
    Replay { workers: u16 },
    /// With the server's own durability, to see that it starts and holds what it should.
    Verify,
}

/// Binlogs that a server goes on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBin {
    /// Without their numbers.
    pub base: PathBuf,
    /// Names each of them.
    pub index: PathBuf,
}

pub struct Instance {
    server: Mysqld,
    endpoint: Endpoint,
    pub session: Session,
}

impl Instance {
    pub async fn start(mysqld: &Path, workdir: &Workdir, snapshot: &Snapshot, purpose: Purpose) -> anyhow::Result<Instance> {
        ensure_below_datadir(snapshot)?;
        let password = Secret::random();
        let init_file = workdir.scratch().join("init.sql");
        // What is not logged takes no GTID.
        let statements = format!(
            "SET sql_log_bin = 0;\n\
             DROP USER IF EXISTS '{ACCOUNT}'@'localhost';\n\
             CREATE USER '{ACCOUNT}'@'localhost' IDENTIFIED WITH caching_sha2_password BY '{}';\n\
             GRANT ALL ON *.* TO '{ACCOUNT}'@'localhost' WITH GRANT OPTION;\n",
            password.reveal()
        );
        durable::write(&init_file, statements.as_bytes()).with_context(|| format!("cannot write {}", init_file.display()))?;
        std::fs::set_permissions(&init_file, Permissions::from_mode(0o600))?;
        workdir.own(&init_file)?;
        let endpoint = Endpoint {
            address: Address::Socket(workdir.socket()),
            user: ACCOUNT.into(),
            password,
            tls: Tls::Disabled,
        };
        let (user, log) = (workdir.run_as().and_then(RunAs::ids), workdir.scratch().join("mysqld.log"));
        let mut server = Mysqld::spawn_as(user, mysqld, &arguments(workdir, snapshot, &purpose), &log)?;
        let ready = server.wait_ready(&endpoint, START_TIMEOUT).await;
        let removed = std::fs::remove_file(&init_file);
        let session = ready?;
        removed.with_context(|| format!("cannot remove {}", init_file.display()))?;
        Ok(Instance {
            server,
            endpoint,
            session,
        })
    }

    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        self.server.ensure_running()
    }

    pub async fn another_session(&self) -> anyhow::Result<Session> {
        Session::connect(&self.endpoint).await
    }

    /// The last lines of the server's error log.
    pub fn log_end(&self) -> String {
        self.server.log_end()
    }

    /// Why the server died, if it does within `patience`: its connections end before the process does, which writes first
    /// where it died.
    pub async fn death(&mut self, patience: Duration) -> Option<String> {
        let deadline = Instant::now() + patience;
        loop {
            match self.server.ensure_running() {
                Err(e) => return Some(message(&e)),
                Ok(()) if Instant::now() > deadline => return None,
                Ok(()) => tokio::time::sleep(DEATH_LOOK_INTERVAL).await,
            }
        }
    }

    /// A clean shutdown; the account goes with it if the server is handed over.
    pub async fn stop(mut self, drop_account: bool) -> anyhow::Result<()> {
        if drop_account {
            self.session.execute(&format!("DROP USER '{ACCOUNT}'@'localhost'")).await?;
        }
        self.session.close().await;
        self.server.stop(STOP_TIMEOUT).await
    }
}

/// A record comes from a bucket: what it names must not lead out of the data.
fn ensure_below_datadir(snapshot: &Snapshot) -> anyhow::Result<()> {
    const VARIABLE: &str = "innodb_data_file_path";
    let files = snapshot.variables.get(VARIABLE).map_or("", String::as_str);
    if files.contains('/') {
        anyhow::bail!(
            "snapshot {} has {VARIABLE} `{files}`, and only files in the datadir itself are recovered",
            snapshot.id
        );
    }
    Ok(())
}

fn arguments(workdir: &Workdir, snapshot: &Snapshot, purpose: &Purpose) -> Vec<String> {
    let scratch = workdir.scratch();
    let scratch = scratch.display();
    let mut arguments: Vec<String> = vec![
        "--no-defaults".into(),
        format!("--datadir={}", workdir.data().display()),
        format!("--socket={}", workdir.socket().display()),
        format!("--pid-file={scratch}/mysqld.pid"),
        format!("--init-file={scratch}/init.sql"),
        format!("--relay-log={scratch}/relay"),
        format!("--relay-log-index={scratch}/relay.index"),
        format!("--server-id={}", rand::rng().random_range(1u32 << 30..u32::MAX)),
        format!("--innodb-buffer-pool-size={}", buffer_pool_bytes()),
        format!("--max-allowed-packet={LARGEST_PACKET}"),
        format!("--replica-max-allowed-packet={LARGEST_PACKET}"),
        format!("--replica-pending-jobs-size-max={LARGEST_PACKET}"),
        format!("--max-relay-log-size={RELAY_LOG_FILE_BYTES}"),
        format!("--relay-log-space-limit={RELAY_LOG_BYTES_MAX}"),
        "--secure-file-priv=NULL".into(),
    ];
    arguments.extend(
        [
            "--persisted-globals-load=OFF",
            "--skip-networking",
            "--loose-mysqlx=OFF",
            "--skip-replica-start",
            "--event-scheduler=OFF",
            "--gtid-mode=ON",
            "--enforce-gtid-consistency=ON",
            "--super-read-only=ON",
        ]
        .map(str::to_owned),
    );
    if let Some(root) = workdir.run_as().filter(|user| user.ids().is_none()) {
        arguments.push(format!("--user={}", root.name));
    }
    for (variable, option) in [
        ("innodb_data_file_path", "innodb-data-file-path"),
        ("innodb_page_size", "innodb-page-size"),
        ("lower_case_table_names", "lower-case-table-names"),
    ] {
        if let Some(value) = snapshot.variables.get(variable) {
            arguments.push(format!("--{option}={value}"));
        }
    }
    match purpose {
        Purpose::CrashRecovery {
            log_bin: Some(LogBin { base, index }),
        } => arguments.extend([
            format!("--log-bin={}", base.display()),
            format!("--log-bin-index={}", index.display()),
            // They are needed for as long as this takes.
            "--binlog-expire-logs-seconds=0".into(),
        ]),
        _ => arguments.push("--skip-log-bin".into()),
    }
    if let Purpose::Replay { workers } = purpose {
        arguments.extend([
            format!("--replica-parallel-workers={workers}"),
            // Nobody reads while it is replayed, and the stream ends on a boundary.
            "--replica-preserve-commit-order=OFF".into(),
            "--innodb-flush-log-at-trx-commit=0".into(),
            "--innodb-doublewrite=OFF".into(),
            // What was unpacked a moment ago is in the page cache: read past it, it would have to reach the disk first.
            "--innodb-flush-method=fsync".into(),
        ]);
    }
    arguments
}

fn buffer_pool_bytes() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available_kib = meminfo.lines().find_map(|l| {
        l.strip_prefix("MemAvailable:")?
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    });
    (available_kib.unwrap_or(0) * 1024 / BUFFER_POOL_SHARE).max(BUFFER_POOL_BYTES_MIN)
}

/// # Errors
/// Where `mysqld` is older than the servers that wrote the archive, or too old for the replay.
pub async fn check_version(mysqld: &Path, archived: &str) -> anyhow::Result<()> {
    const HINT: &str = "set mysqld in the [recover] section to the program of a server that is at least as new as the archive's";
    let output = tokio::process::Command::new(mysqld)
        .args(["--no-defaults", "--version"])
        .output()
        .await
        .with_context(|| format!("cannot run {}", mysqld.display()))
        .hint(HINT)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().skip_while(|w| *w != "Ver").nth(1).unwrap_or_default();
    let number = version_number(version);
    if number < VERSION_MIN || number < version_number(archived) {
        let e = anyhow::anyhow!(
            "{} is MySQL {version}, and the archive was written by {archived}",
            mysqld.display()
        );
        return Err(e).hint(HINT);
    }
    Ok(())
}
