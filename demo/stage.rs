//! Where the demo plays: a folder made anew, two servers, the agent, and the commands that are run as a user runs them.
//!
//! All children are held here and not by the story, so that they can still be stopped in order when the story breaks off.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use futures_util::future::try_join_all;
use mysql_pitr::{
    mysql::{
        endpoint::{Address, Endpoint, Tls},
        process::{Mysqld, initialize},
        query::Session,
    },
    support::{hint::OrHint, secret::Secret},
};
use nix::{sys::signal, unistd::Pid};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::timeout,
};

use crate::{
    config::{Config, HttpSection, MysqlSection, RecoverSection, SnapshotSection, StateSection, StoreSection},
    sockets::Sockets,
};

/// Below the current folder: the checkout's own target folder, wherever cargo builds.
const FOLDER: &str = "target/demo";
/// The configuration's name in the folder.
pub const CONFIG: &str = "mysql-pitr.toml";
const TOOL: &str = "mysql-pitr";
const MYSQLD_VARIABLE: &str = "MYSQLD";
/// For the server's first start, which makes its system tables, and for any other.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// What is shown of the agent's log when it ended by itself.
const LOG_LINES_SHOWN: usize = 12;

/// The two servers of the story.
#[derive(Debug, Clone, Copy)]
pub enum Role {
    Primary = 1,
    Recovered = 2,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Recovered => "recovered",
        }
    }
}

pub struct Stage {
    mysqld: PathBuf,
    tool: PathBuf,
    folder: PathBuf,
    /// Held as long as the folder is in use.
    _lock: File,
    sockets: Sockets,
    agent: Option<Child>,
    command: Option<Child>,
    servers: Vec<Mysqld>,
}

impl Stage {
    /// Finds the programs and makes the folder anew.
    pub fn prepare() -> anyhow::Result<Stage> {
        let mysqld = std::env::var_os(MYSQLD_VARIABLE)
            .map(PathBuf::from)
            .with_context(|| format!("the environment variable {MYSQLD_VARIABLE} does not name a server"))
            .hint("run `make demo`, which finds or fetches one")?;
        let tool = std::env::current_exe()?.with_file_name(TOOL);
        if !tool.exists() {
            return Err(anyhow!("there is no {}", tool.display())).hint("run `make demo`, which builds it");
        }
        let folder = std::path::absolute(FOLDER)?;
        let lock = lock(&folder.with_extension("lock"))?;
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove what an earlier demo left in {FOLDER}"))?;
        }
        for made in [folder.clone(), folder.join("archive"), folder.join("staging")] {
            fs::create_dir_all(&made).with_context(|| format!("cannot create {}", made.display()))?;
        }
        Ok(Stage {
            mysqld,
            tool,
            folder,
            _lock: lock,
            sockets: Sockets::create()?,
            agent: None,
            command: None,
            servers: Vec::new(),
        })
    }

    /// A path in the folder, as a user would type it.
    pub fn shown(&self, name: &str) -> String {
        format!("{FOLDER}/{name}")
    }

    /// What a reader can type to see the archive.
    pub fn way_to_look_around(&self) -> String {
        let tool = std::env::current_dir()
            .ok()
            .and_then(|here| Some(self.tool.strip_prefix(here).ok()?.to_owned()));
        let tool = tool.as_ref().unwrap_or(&self.tool);
        format!("{} --config {} list", tool.display(), self.shown(CONFIG))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// How to log in where nobody set a password yet.
    pub fn root_of(&self, role: Role) -> Endpoint {
        Endpoint {
            address: Address::Socket(self.sockets.socket(role.name())),
            user: "root".into(),
            password: Secret::new(""),
            tls: Tls::Disabled,
        }
    }

    /// Makes the primary's data folder.
    pub async fn initialize(&self) -> anyhow::Result<()> {
        let arguments = self.server_arguments(Role::Primary);
        initialize(&self.mysqld, &arguments, &self.error_log(Role::Primary), START_TIMEOUT)
            .await
            .hint(format!(
                "set {MYSQLD_VARIABLE} to another mysqld; one that AppArmor confines may write in its own folders only"
            ))
    }

    /// Starts a server on its data folder, with ordinary settings. Its clients come through the socket only.
    pub async fn start_server(&mut self, role: Role) -> anyhow::Result<Session> {
        let server = Mysqld::spawn(&self.mysqld, &self.server_arguments(role), &self.error_log(role))?;
        self.servers.push(server);
        let endpoint = self.root_of(role);
        let server = self.servers.last_mut().context("no server")?;
        server.wait_ready(&endpoint, START_TIMEOUT).await
    }

    fn error_log(&self, role: Role) -> PathBuf {
        self.path(&format!("{}.log", role.name()))
    }

    fn server_arguments(&self, role: Role) -> Vec<String> {
        let socket = self.sockets.socket(role.name());
        let mut arguments = vec![
            "--no-defaults".into(),
            format!("--datadir={}", self.path(role.name()).display()),
            format!("--socket={}", socket.display()),
            format!("--pid-file={}", socket.with_extension("pid").display()),
            format!("--server-id={}", role as u8),
            // Both are on by default only in newer versions.
            "--gtid-mode=ON".into(),
            "--enforce-gtid-consistency=ON".into(),
            "--skip-networking".into(),
            "--loose-mysqlx=OFF".into(),
            // A packaged server may have a folder compiled in that is not there.
            "--secure-file-priv=NULL".into(),
        ];
        if nix::unistd::geteuid().is_root() {
            arguments.push("--user=root".into());
        }
        arguments
    }

    /// Writes the configuration and the password file that it names.
    pub fn configure(&self, user: &str, password: &Secret) -> anyhow::Result<()> {
        const MODE: u32 = 0o600;
        let password_file = self.path("mysql-password");
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&password_file)?;
        writeln!(file, "{}", password.reveal())?;
        let config = Config {
            shard: "demo",
            mysql: MysqlSection {
                socket: self.sockets.socket(Role::Primary.name()),
                user,
                password_file,
            },
            store: StoreSection {
                url: format!("file://{}", self.path("archive").display()),
            },
            snapshot: SnapshotSection {
                // The story says when.
                schedule: "off",
                staging_dir: self.path("staging"),
            },
            recover: RecoverSection {
                mysqld: &self.mysqld,
                user: nix::unistd::geteuid().is_root().then_some("root"),
            },
            // Another agent of this machine may have the port.
            http: HttpSection { listen: "off" },
            state: StateSection {
                path: self.path("state.db"),
            },
        };
        Ok(fs::write(self.path(CONFIG), toml::to_string(&config)?)?)
    }

    pub fn start_agent(&mut self) -> anyhow::Result<()> {
        let log = File::create(self.path("agent.log"))?;
        let mut command = self.tool_command(&["agent"]);
        command.stdout(log.try_clone()?).stderr(log);
        self.agent = Some(
            command
                .spawn()
                .with_context(|| format!("cannot start {}", self.tool.display()))?,
        );
        Ok(())
    }

    /// Fails if the agent has ended by itself.
    pub fn ensure_agent_runs(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.agent.as_mut().map(Child::try_wait).transpose()?.flatten() else {
            return Ok(());
        };
        let log = fs::read_to_string(self.path("agent.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
        bail!("the agent ended ({status}); {} ends with:\n{end}", self.shown("agent.log"))
    }

    /// What the agent thought worth a warning.
    pub fn agent_warnings(&self) -> anyhow::Result<Vec<String>> {
        let log = fs::read_to_string(self.path("agent.log"))?;
        let is_warning = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
        Ok(log.lines().filter(is_warning).map(str::to_owned).collect())
    }

    /// Runs `mysql-pitr` with `arguments` to its end, and returns what it printed.
    pub async fn run(&mut self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut child = self
            .tool_command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.tool.display()))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (mut out, mut err) = (out.context("no standard output")?, err.context("no standard error")?);
        let child = self.command.insert(child);
        let (mut printed, mut complaint) = (String::new(), String::new());
        tokio::try_join!(out.read_to_string(&mut printed), err.read_to_string(&mut complaint))?;
        let status = child.wait().await?;
        self.command = None;
        if !status.success() {
            self.ensure_agent_runs()?;
            let line = type_out(arguments);
            bail!("`{line}` failed ({status}). It said:\n{printed}{}", complaint.trim_end());
        }
        Ok(printed)
    }

    fn tool_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.tool);
        command
            .args(arguments)
            .env("MYSQL_PITR_CONFIG", self.path(CONFIG))
            // `recover` has a socket of its own to find room for.
            .env("TMPDIR", self.sockets.parent())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Stops everything, the servers last. What does not stop in time is killed.
    pub async fn shut_down(mut self) -> anyhow::Result<()> {
        let command = self.command.take().map(|child| ("the command that ran", child));
        let agent = self.agent.take().map(|child| ("the agent", child));
        for (name, mut child) in command.into_iter().chain(agent) {
            terminate(&mut child).await.with_context(|| format!("cannot stop {name}"))?;
        }
        try_join_all(self.servers.into_iter().map(|server| server.stop(STOP_TIMEOUT))).await?;
        Ok(())
    }
}

/// Keeps a second demo out, which would remove the files of the first.
fn lock(path: &Path) -> anyhow::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(anyhow!("{} is locked", path.display())).hint("another demo runs in this checkout; wait for its end")
        }
        Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// A command line of mysql-pitr as one types it.
pub fn type_out(arguments: &[&str]) -> String {
    let quoted = arguments.iter().map(|a| match a.contains(' ') {
        true => format!("'{a}'"),
        false => (*a).to_owned(),
    });
    [TOOL.to_owned()].into_iter().chain(quoted).collect::<Vec<_>>().join(" ")
}

async fn terminate(child: &mut Child) -> anyhow::Result<()> {
    // None: it has ended already.
    if let Some(id) = child.id() {
        signal::kill(Pid::from_raw(id.cast_signed()), signal::Signal::SIGTERM)?;
        timeout(STOP_TIMEOUT, child.wait())
            .await
            .map_err(|_| anyhow!("it did not stop within {} s, and is killed", STOP_TIMEOUT.as_secs()))??;
    }
    Ok(())
}
