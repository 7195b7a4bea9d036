//! moto's server: an S3 (and EC2) in one process, without persistence.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    mysql::Server,
    node::{Node, path_text},
};

/// Python with moto's modules takes a few seconds to start, more on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs moto's server by moto's Python.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/moto_server.py");

/// Ends moto as soon as its own standard input does: when the test drops it, and also when the test process dies in any other way.
const LEASH: &str = r#""$0" "$1" -H 127.0.0.1 -p 0 & cat > /dev/null; kill $!; wait"#;

/// A running server. Dropped, it ends.
pub struct Moto {
    child: Child,
    /// Its URL.
    pub endpoint: String,
}

impl Moto {
    /// Starts a server on a port that the system chooses. Once this returns, it answers.
    pub fn start() -> Self {
        let python = python();
        let mut child = Command::new("sh")
            .args(["-c", LEASH])
            .arg(&python)
            .arg(SCRIPT)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut moto = Moto {
            child,
            endpoint: String::new(),
        };
        let (said, heard) = mpsc::channel();
        // Reads on to the end: a full pipe would stop the server.
        thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| drop(said.send(line))));
        let deadline = Instant::now() + START_TIMEOUT;
        let mut log = String::new();
        while let Ok(line) = heard.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            // Printed after listen(2), so that connections are taken from here on.
            if let Some((_, url)) = line.split_once("Running on ") {
                moto.endpoint = url.trim().to_owned();
                return moto;
            }
            log = log + &line + "\n";
        }
        panic!("moto did not start within {START_TIMEOUT:?} on {}:\n{log}", python.display());
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The Python of the environment that moto_server is in.
fn python() -> PathBuf {
    let server = env::var_os("MYSQL_PITR_MOTO").map(PathBuf::from).unwrap_or_else(|| {
        let cache = env::var_os("MYSQL_PITR_CACHE").map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| PathBuf::from(env::var_os("HOME").expect("HOME is set")).join(".cache/mysql-pitr"));
        cache.join("moto/bin/moto_server")
    });
    match server.canonicalize() {
        Ok(server) => server.with_file_name("python3"),
        Err(e) => panic!(
            "moto is not installed at {} ({e}): run scripts/moto.sh, or set MYSQL_PITR_MOTO",
            server.display()
        ),
    }
}

/// A node whose archive is `url` at `endpoint`. `extra`: as for [`Node::new`].
pub fn s3_node(server: &Server, endpoint: &str, url: &str, extra: &str) -> Node {
    let mut node = Node::new(server, extra);
    let folder = format!("url = \"file://{}\"", path_text(&node.archive_dir));
    let s3 = format!(
        "url = \"{url}\"
region = \"eu-west-1\"
endpoint = \"{endpoint}\"
path_style = true"
    );
    node.reconfigure(&folder, &s3);
    node.environment = environment(NO_METADATA);
    node
}

/// Of commands on a machine that is no instance.
pub const NO_METADATA: (&str, &str) = ("AWS_EC2_METADATA_DISABLED", "true");

/// Of commands with keys that moto takes, which find no AWS configuration of this machine. `metadata`: what is said of the metadata service.
pub fn environment(metadata: (&str, &str)) -> Vec<(String, String)> {
    let environment = [
        ("AWS_ACCESS_KEY_ID", "AKIDTEST"),
        ("AWS_SECRET_ACCESS_KEY", "nobody-prints-this"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        metadata,
    ];
    environment.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// Asks moto's own interface, or its S3 without a signature, which it takes.
pub fn http(moto: &Moto, method: &str, path: &str, body: &str) {
    let address = moto.endpoint.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{method} {path}: {answer}");
}

/// In the region of [`s3_node`].
pub fn make_bucket(moto: &Moto, bucket: &str) {
    let place = "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                 <LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>";
    http(moto, "PUT", &format!("/{bucket}"), place);
}
