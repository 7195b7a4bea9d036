//! What MySQL itself has: mysqlbinlog, which copies binlogs off a server or turns them into statements for its client, and
//! replicas.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, time::Instant};

use crate::{
    origin::{Origin, REPLICA_USER},
    support::mysql::Server,
};

/// `make bench` sets it.
pub const PROGRAM_VARIABLE: &str = "MYSQL_PITR_MYSQLBINLOG";

/// What the reports call [`copy`] and [`follow`].
pub const COPY: &str = "mysqlbinlog --raw";
pub const FOLLOW: &str = "mysqlbinlog --raw --stop-never";
/// And [`pipe`] and [`replicate`].
pub const PIPE: &str = "mysqlbinlog | mysql";
pub const REPLICA: &str = "a replica of a live source";

/// What `recover` sets on the server that it replays into. What no option here names has MySQL's default on both sides.
pub const RECOVER_SETTINGS: [&str; 11] = [
    "--skip-log-bin",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=OFF",
    "--innodb-flush-method=fsync",
    BUFFER_POOL,
    "--replica-parallel-workers=8",
    "--replica-preserve-commit-order=OFF",
    "--replica-max-allowed-packet=1G",
    "--replica-pending-jobs-size-max=1G",
    "--max-relay-log-size=256M",
    "--relay-log-space-limit=1G",
];
/// MySQL's own durability, a binlog included.
pub const DEFAULT_SETTINGS: [&str; 1] = [BUFFER_POOL];
/// About what `recover` takes; more than any bench's changed pages.
const BUFFER_POOL: &str = "--innodb-buffer-pool-size=4G";

fn program() -> PathBuf {
    let program = env::var_os(PROGRAM_VARIABLE);
    program
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("{PROGRAM_VARIABLE} is not set: run `make bench`"))
}

/// Copies the named binlogs into `folder`, through the server's socket.
pub fn copy(server: &Server, folder: &Path, names: &[String]) -> Command {
    let mut command = Command::new(program());
    command
        .args(["--no-defaults", "--read-from-remote-server", "--raw", "--user=root"])
        .arg(format!("--socket={}", server.socket.display()))
        .arg(format!("--result-file={}/", folder.display()))
        .stdin(Stdio::null());
    command.args(names);
    command
}

/// Copies `first` and whatever the server writes after it, until it is killed.
pub fn follow(server: &Server, folder: &Path, first: &str) -> Command {
    let mut command = copy(server, folder, &[]);
    command.args(["--stop-never", first]).kill_on_drop(true);
    command
}

/// Applies the origin's binlogs by mysqlbinlog's statements. Returns how long it took: without the server's shutdown, which
/// a person who does this may not need.
pub async fn pipe(origin: &mut Origin, options: &[&str]) -> Duration {
    let restored = origin.restored(options).await;
    let began = Instant::now();
    let mut reader = Command::new(program());
    reader.arg("--no-defaults").args(origin.binlog_files());
    let mut reader = reader
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("mysqlbinlog starts");
    let statements: Stdio = reader.stdout.take().and_then(|out| out.try_into().ok()).expect("a pipe");
    let client = Command::new(program().with_file_name("mysql"))
        .args(["--no-defaults", "--binary-mode", "--user=root"])
        .arg(format!("--socket={}", restored.server.socket.display()))
        .stdin(statements)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .expect("mysql runs");
    let took = began.elapsed();
    let reader = reader.wait().await.expect("mysqlbinlog ends");
    assert!(
        client.success() && reader.success(),
        "mysqlbinlog ended with {reader}, mysql with {client}"
    );
    restored.stop_complete().await;
    took
}

/// Lets a replica get them from the origin itself. Returns how long it took up to a clean shutdown, as `recover`'s phase does.
pub async fn replicate(origin: &mut Origin) -> Duration {
    let restored = origin.restored(&RECOVER_SETTINGS).await;
    let began = Instant::now();
    let source = format!(
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT={}, SOURCE_USER='{REPLICA_USER}', SOURCE_PASSWORD='', \
         SOURCE_AUTO_POSITION=1, SOURCE_SSL=0",
        origin.server.port
    );
    restored.server.execute(&[&source, "START REPLICA"]).await;
    restored.wait_complete().await;
    restored.server.execute(&["STOP REPLICA", "RESET REPLICA ALL"]).await;
    restored.stop_complete().await;
    began.elapsed()
}
