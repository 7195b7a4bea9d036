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
use uuid::Uuid;

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
    /// Whether nobody, root included, can write to it from its next start on.
    pub read_only: bool,
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
        Server::start_new(dir, datadir, options, prepare).await
    }

    /// A new, empty server with its data in a folder that is not there yet.
    pub async fn start_at(datadir: &Path, options: &[&str]) -> Server {
        Server::start_new(tempfile::tempdir().unwrap(), datadir.to_owned(), options, |_| {}).await
    }

    async fn start_new(dir: TempDir, datadir: PathBuf, options: &[&str], prepare: impl FnOnce(&Path)) -> Server {
        let arguments = [base(&datadir), vec!["--innodb-redo-log-capacity=16M".into()]].concat();
        initialize(&mysqld(), &arguments, &dir.path().join("init.log"), START_TIMEOUT)
            .await
            .unwrap();
        prepare(&datadir);
        let server = Server::start_in(dir, datadir, options, false).await;
        let mut root = server.root().await;
        for sql in [
            "SET sql_log_bin = 0".to_owned(),
            format!("CREATE USER mysql_pitr@localhost IDENTIFIED BY '{PASSWORD}'"),
            "GRANT REPLICATION SLAVE, REPLICATION CLIENT, BACKUP_ADMIN, PROCESS, SHOW VIEW ON *.* TO mysql_pitr@localhost"
                .to_owned(),
            "GRANT SELECT ON performance_schema.* TO mysql_pitr@localhost".to_owned(),
            format!("CREATE USER replica@'%' IDENTIFIED BY '{PASSWORD}'"),
            "GRANT REPLICATION SLAVE ON *.* TO replica@'%'".to_owned(),
            "INSTALL PLUGIN clone SONAME 'mysql_clone.so'".to_owned(),
        ] {
            root.execute(&sql).await.unwrap();
        }
        server
    }

    /// A server on data that is there already, such as a recovered one's.
    pub async fn start_on(datadir: &Path, options: &[&str]) -> Server {
        Server::start_in(tempfile::tempdir().unwrap(), datadir.to_owned(), options, false).await
    }

    /// A read-only server that begins with this one's data, and has a server_uuid of its own.
    pub async fn start_clone(&self, options: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let datadir = dir.path().join("data");
        self.clone_into(&datadir).await;
        Server::start_in(dir, datadir, options, true).await
    }

    /// The same, with its data in a folder that is not there yet.
    pub async fn start_clone_at(&self, datadir: &Path, options: &[&str]) -> Server {
        self.clone_into(datadir).await;
        Server::start_in(tempfile::tempdir().unwrap(), datadir.to_owned(), options, true).await
    }

    /// Gives a stopped server the data of `source` in place of its own, under its old server_uuid, as MySQL's remote clone does.
    pub async fn rebuild_from(&mut self, source: &Server) {
        let identity = self.datadir.join("auto.cnf");
        let uuid = fs::read(&identity).unwrap();
        fs::remove_dir_all(&self.datadir).unwrap();
        source.clone_into(&self.datadir).await;
        fs::write(identity, uuid).unwrap();
        self.read_only = true;
        self.run().await;
    }

    /// The data folder of a stopped server.
    pub fn copy_data_to(&self, folder: &Path) {
        copy_folder(&self.datadir, folder);
    }

    /// The data of a stopped server is what it was when it was copied.
    pub fn put_data_back(&self, folder: &Path) {
        fs::remove_dir_all(&self.datadir).unwrap();
        fs::create_dir(&self.datadir).unwrap();
        copy_folder(folder, &self.datadir);
    }

    async fn clone_into(&self, datadir: &Path) {
        self.execute(&[&format!("CLONE LOCAL DATA DIRECTORY = '{}'", datadir.display())])
            .await;
    }

    /// Becomes a replica of `source`.
    pub async fn replicate_from(&mut self, source: &Server) {
        self.read_only = true;
        let port = source.port;
        self.execute(&[
            "SET GLOBAL super_read_only = ON",
            "STOP REPLICA",
            &format!(
                "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {port}, SOURCE_USER = 'replica', \
                 SOURCE_PASSWORD = '{PASSWORD}', SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1, SOURCE_CONNECT_RETRY = 1"
            ),
            "START REPLICA",
        ])
        .await;
    }

    /// Waits until it has executed all of `gtids`.
    pub async fn wait_executed(&self, gtids: &GtidSet) {
        let timeout_secs = START_TIMEOUT.as_secs();
        let sql = format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{gtids}', {timeout_secs})");
        let timed_out: Vec<(u64,)> = self.root().await.rows_within(&sql, START_TIMEOUT * 2).await.unwrap();
        assert_eq!(timed_out, [(0,)], "not replicated: {gtids}\n{}", self.error_log());
    }

    /// Waits until a replica whose source is dead has applied all that it has received.
    pub async fn wait_applied(&self) {
        self.execute(&["STOP REPLICA IO_THREAD"]).await;
        let sql = "SELECT COALESCE(received_transaction_set, '') FROM performance_schema.replication_connection_status";
        let received: Vec<(String,)> = self.root().await.rows(sql).await.unwrap();
        for (set,) in received {
            self.wait_executed(&set.replace('\n', "").parse().unwrap()).await;
        }
    }

    /// Forgets its source, and can be written to.
    pub async fn promote(&mut self) {
        self.read_only = false;
        self.execute(&["STOP REPLICA", "RESET REPLICA ALL", "SET GLOBAL read_only = OFF"])
            .await;
    }

    pub async fn uuid(&self) -> Uuid {
        let (uuid,): (String,) = self.root().await.one("SELECT @@GLOBAL.server_uuid").await.unwrap();
        uuid.parse().unwrap()
    }

    async fn start_in(dir: TempDir, datadir: PathBuf, options: &[&str], read_only: bool) -> Server {
        let port = free_port();
        let socket = dir.path().join("s");
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        let mut server = Server {
            process: None,
            datadir,
            socket,
            port,
            read_only,
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
        if self.read_only {
            arguments.push("--super-read-only=ON".into());
        }
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

pub fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let (entry, kind) = entry.map(|e| (e.path(), e.file_type().unwrap())).unwrap();
        let copy = to.join(entry.file_name().unwrap());
        if kind.is_dir() {
            fs::create_dir(&copy).unwrap();
            copy_folder(&entry, &copy);
        } else {
            fs::copy(&entry, &copy).unwrap();
        }
    }
}

/// One that nobody listens on at this moment.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
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
