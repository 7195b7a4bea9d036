//! `[recover] user`: what root recovers is another user's, and so is the server that recovers it.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use mysql_pitr::mysql::{
    endpoint::{Address, Endpoint, Tls},
    process::Mysqld,
};
use nix::unistd::{User, geteuid};
use tokio::time::timeout;

use crate::support::{
    mysql::{Server, mysqld},
    node::{Node, PATIENCE, path_text},
    skipped,
    truth::truth,
};

/// System users that may be there; none is made for this.
const USERS: [&str; 2] = ["mysql", "nobody"];
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Whoever wants to may go through, as on a real server.
const OPEN_FOLDER_MODE: u32 = 0o755;

#[tokio::test]
async fn what_root_recovers_is_mysqlds_users() {
    if !geteuid().is_root() {
        return skipped("[recover] user: only root can give files away");
    }
    let Some(user) = USERS.iter().find_map(|name| User::from_name(name).unwrap()) else {
        return skipped(&format!("[recover] user: none of {USERS:?} is there"));
    };
    let programs = open_folder();
    let Some(program) = program_for(&user, programs.path()) else {
        return skipped(&format!("[recover] user: {} may not run {}", user.name, mysqld().display()));
    };
    let server = Server::start(&[]).await;
    let insert = "INSERT INTO d.t VALUES (NULL)";
    let table = "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT)";
    server.execute(&["CREATE DATABASE d", table, insert]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    node.wait_snapshots(1).await;
    server.execute(&[insert]).await;
    node.wait_shipped(&server).await;
    agent.stop().await;
    let (held, executed) = (truth(&mut server.root().await).await, server.gtid_executed().await);

    fs::set_permissions(node.dir.path(), Permissions::from_mode(OPEN_FOLDER_MODE)).unwrap();
    let with_user = format!("[recover]\nuser = \"{}\"\nmysqld = \"{}\"", user.name, path_text(&program));
    node.reconfigure(&format!("[recover]\nmysqld = \"{}\"", path_text(&mysqld())), &with_user);
    let target = node.target("target");
    let mut recover = node
        .command(&["recover", "--latest", "--target-dir", path_text(&target)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut seen = BTreeSet::new();
    let status = loop {
        seen.extend(users_of_servers_in(&target));
        match timeout(LOOK_INTERVAL, recover.wait()).await {
            Ok(status) => break status.unwrap(),
            Err(_) => continue,
        }
    };
    assert!(status.success(), "{status}");
    assert_eq!(seen, BTreeSet::from([user.uid.as_raw()]), "whose the servers were");
    for path in everything_in(&target) {
        let owner = fs::symlink_metadata(&path).map(|m| (m.uid(), m.gid())).unwrap();
        assert_eq!(owner, (user.uid.as_raw(), user.gid.as_raw()), "{}", path.display());
    }

    let socket = target.join("s");
    let arguments = [
        "--no-defaults",
        &format!("--datadir={}", target.display()),
        &format!("--socket={}", socket.display()),
        "--skip-networking",
        "--loose-mysqlx=OFF",
        "--secure-file-priv=NULL",
        "--server-id=2",
    ]
    .map(str::to_owned);
    let ids = Some((user.uid.as_raw(), user.gid.as_raw()));
    let mut recovered = Mysqld::spawn_as(ids, &program, &arguments, &target.join("error.log")).unwrap();
    let root = Endpoint {
        address: Address::Socket(socket),
        tls: Tls::Disabled,
        ..server.root_endpoint()
    };
    let mut session = recovered.wait_ready(&root, PATIENCE).await.unwrap();
    assert_eq!(session.gtid_executed().await.unwrap(), executed);
    assert!(truth(&mut session).await == held);
    session.close().await;
    recovered.stop(PATIENCE).await.unwrap();
}

fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(OPEN_FOLDER_MODE)).unwrap();
    folder
}

/// A mysqld that this user may run: the tests' own, or, where that lies in a folder that is root's alone, the same files elsewhere.
fn program_for(user: &User, folder: &Path) -> Option<PathBuf> {
    let may_run = |program: &Path| {
        let mut command = Command::new(program);
        command
            .args(["--no-defaults", "--version"])
            .uid(user.uid.as_raw())
            .gid(user.gid.as_raw());
        command.current_dir("/").output().is_ok_and(|out| out.status.success())
    };
    if may_run(&mysqld()) {
        return Some(mysqld());
    }
    // What scripts/mysql.sh made: a text that names the folder which holds everything.
    let text = fs::read_to_string(mysqld()).ok()?;
    let (from, to) = (mysqld().parent()?.parent()?.to_owned(), folder.join("mysql"));
    let copies = |how: &str| Command::new("cp").args([how, path_text(&from), path_text(&to)]).output();
    let is_copied = |how: &str| copies(how).is_ok_and(|out| out.status.success());
    // Links take no room, and are not to be had everywhere.
    if !is_copied("-al") {
        let _ = fs::remove_dir_all(&to);
        assert!(is_copied("-a"), "cannot copy {}", from.display());
    }
    let program = to.join("bin/mysqld");
    // Written anew, for the old one may be a link to the original.
    fs::remove_file(&program).unwrap();
    fs::write(&program, text.replace(path_text(&from), path_text(&to))).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(OPEN_FOLDER_MODE)).unwrap();
    may_run(&program).then_some(program)
}

/// Of the running servers whose data lie below `target`: real, effective, saved and file system users.
fn users_of_servers_in(target: &Path) -> Vec<u32> {
    let datadir = format!("--datadir={}", target.display());
    let is_one = |process: &PathBuf| {
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        arguments
            .split(|byte| *byte == 0)
            .any(|argument| argument.starts_with(datadir.as_bytes()))
    };
    let users = |process: PathBuf| {
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("Uid:"))
            .unwrap_or_default()
            .to_owned();
        line.split_whitespace().map(|uid| uid.parse().unwrap()).collect::<Vec<u32>>()
    };
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes.filter(is_one).flat_map(users).collect()
}

/// The folder itself, too.
fn everything_in(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (vec![folder.to_owned()], vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}
