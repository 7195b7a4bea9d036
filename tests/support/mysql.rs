//! Real MySQL servers.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use mysql_pitr::{
    binlog::gtid::GtidSet,
    mysql::{
        endpoint::{Address, Endpoint, Tls},
        process::{Mysqld, initialize},
        query::Session,
    },
    support::secret::Secret,
};
use nix::unistd::geteuid;
use tempfile::TempDir;

/// A busy machine with two cores takes its time.
pub const START_TIMEOUT: Duration = Duration::from_secs(120);
pub const PASSWORD: &str = "not a secret";

/// The server program: `make test` sets it.
pub fn mysqld() -> PathBuf {
    let Some(path) = env::var_os("MYSQLD") else {
        panic!("MYSQLD is not set: run the tests with `make test`, or set it to a mysqld of version 8.0 or later");
    };
    path.into()
}

/// A server on a socket and on loopback, with an account for the agent and the clone plugin.
pub struct Server {
    process: Option<Mysqld>,
    pub datadir: PathBuf,
    pub socket: PathBuf,
    pub port: u16,
    options: Vec<String>,
    dir: TempDir,
}

impl Server {
    /// A new, empty server. `options` go to its command line.
    pub async fn start(options: &[&str]) -> Server {
        Server::start_prepared(options, |_| {}).await
    }

    /// A new, empty server; `prepare` puts what it needs into its data folder before the first start.
    pub async fn start_prepared(options: &[&str], prepare: impl FnOnce(&Path)) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let datadir = dir.path().join("data");
        let arguments = [base(&datadir), vec!["--innodb-redo-log-capacity=16M".into()]].concat();
        initialize(&mysqld(), &arguments, &dir.path().join("init.log"), START_TIMEOUT)
            .await
            .unwrap();
        prepare(&datadir);
        let server = Server::start_in(dir, datadir, options).await;
        let mut root = server.root().await;
        for sql in [
            "SET sql_log_bin = 0".to_owned(),
            format!("CREATE USER mysql_pitr@localhost IDENTIFIED BY '{PASSWORD}'"),
            "GRANT REPLICATION SLAVE, REPLICATION CLIENT, BACKUP_ADMIN, PROCESS, SHOW VIEW ON *.* TO mysql_pitr@localhost"
                .to_owned(),
            "GRANT SELECT ON performance_schema.* TO mysql_pitr@localhost".to_owned(),
            "INSTALL PLUGIN clone SONAME 'mysql_clone.so'".to_owned(),
        ] {
            root.execute(&sql).await.unwrap();
        }
        server
    }

    /// A server on data that is there already, such as a recovered one's.
    pub async fn start_on(datadir: &Path, options: &[&str]) -> Server {
        Server::start_in(tempfile::tempdir().unwrap(), datadir.to_owned(), options).await
    }

    async fn start_in(dir: TempDir, datadir: PathBuf, options: &[&str]) -> Server {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let socket = dir.path().join("s");
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        let mut server = Server {
            process: None,
            datadir,
            socket,
            port,
            options,
            dir,
        };
        server.run().await;
        server
    }

    /// Starts a server that was killed or stopped.
    pub async fn run(&mut self) {
        let mut arguments = base(&self.datadir);
        arguments.extend([
            format!("--socket={}", self.socket.display()),
            format!("--pid-file={}/pid", self.dir.path().display()),
            format!("--port={}", self.port),
            "--bind-address=127.0.0.1".into(),
            "--server-id=1".into(),
            "--max-allowed-packet=1G".into(),
        ]);
        arguments.extend(self.options.iter().cloned());
        let mut process = Mysqld::spawn(&mysqld(), &arguments, &self.dir.path().join("error.log")).unwrap();
        process
            .wait_ready(&self.root_endpoint(), START_TIMEOUT)
            .await
            .unwrap()
            .close()
            .await;
        self.process = Some(process);
    }

    /// A clean shutdown and a new start.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.run().await;
    }

    /// kill -9, and a new start.
    pub async fn crash(&mut self) {
        self.kill().await;
        self.run().await;
    }

    pub async fn kill(&mut self) {
        self.process.take().expect("it runs").kill().await.unwrap();
    }

    pub async fn stop(&mut self) {
        self.process.take().expect("it runs").stop(START_TIMEOUT).await.unwrap();
    }

    /// A clean shutdown of a server that is not needed any more.
    pub async fn stop_for_good(mut self) {
        self.stop().await;
    }

    /// A session as root, which may do everything.
    pub async fn root(&self) -> Session {
        Session::connect(&self.root_endpoint()).await.unwrap()
    }

    pub fn root_endpoint(&self) -> Endpoint {
        self.endpoint("root", "")
    }

    pub fn agent_endpoint(&self) -> Endpoint {
        self.endpoint("mysql_pitr", PASSWORD)
    }

    fn endpoint(&self, user: &str, password: &str) -> Endpoint {
        Endpoint {
            address: Address::Socket(self.socket.clone()),
            user: user.into(),
            password: Secret::new(password),
            tls: Tls::Disabled,
        }
    }

    pub async fn execute(&self, statements: &[&str]) {
        let mut root = self.root().await;
        for sql in statements {
            root.execute_within(sql, START_TIMEOUT).await.unwrap();
        }
        root.close().await;
    }

    pub async fn gtid_executed(&self) -> GtidSet {
        self.root().await.gtid_executed().await.unwrap()
    }

    pub fn error_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_default()
    }
}

fn base(datadir: &Path) -> Vec<String> {
    let mut arguments: Vec<String> = vec![
        "--no-defaults".into(),
        format!("--datadir={}", datadir.display()),
        "--secure-file-priv=NULL".into(),
        "--loose-mysqlx=OFF".into(),
        "--gtid-mode=ON".into(),
        "--enforce-gtid-consistency=ON".into(),
    ];
    if geteuid().is_root() {
        arguments.push("--user=root".into());
    }
    arguments
}
