//! mysqlbinlog, MySQL's own way to copy binlogs off a server.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use crate::support::mysql::Server;

/// `make bench` sets it.
pub const PROGRAM_VARIABLE: &str = "MYSQL_PITR_MYSQLBINLOG";

/// What the reports call [`copy`] and [`follow`].
pub const COPY: &str = "mysqlbinlog --raw";
pub const FOLLOW: &str = "mysqlbinlog --raw --stop-never";

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
