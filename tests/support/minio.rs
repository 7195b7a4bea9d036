//! MinIO: an S3 whose buckets replicate by themselves.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::{eventually, mysql::free_port, node::path_text};

/// As [`super::moto::s3_node`] has them.
pub const USER: &str = "AKIDTEST";
pub const PASSWORD: &str = "nobody-prints-this";

/// Ends it as soon as its own standard input does: when the test drops it, and also when the test process dies in any other way.
const LEASH: &str = r#""$0" server --quiet --address "$1" "$2" & cat > /dev/null; kill $!; wait"#;

/// The folder of minio and mc. None where there is none.
pub fn binaries() -> Option<PathBuf> {
    env::var_os("MYSQL_PITR_MINIO")
        .map(PathBuf::from)
        .filter(|folder| folder.join("minio").is_file() && folder.join("mc").is_file())
}

/// A running server. Dropped, it ends.
pub struct Minio {
    child: Child,
    address: String,
    /// Its URL.
    pub endpoint: String,
    data: TempDir,
}

fn spawn(binaries: &Path, address: &str, data: &Path) -> Child {
    Command::new("sh")
        .args(["-c", LEASH])
        .arg(binaries.join("minio"))
        .args([address, path_text(data)])
        .env("MINIO_ROOT_USER", USER)
        .env("MINIO_ROOT_PASSWORD", PASSWORD)
        .env("MINIO_SITE_REGION", "eu-west-1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh starts")
}

impl Minio {
    /// Once this returns, it answers.
    pub async fn start(binaries: &Path) -> Minio {
        let (data, address) = (tempfile::tempdir().unwrap(), format!("127.0.0.1:{}", free_port()));
        let minio = Minio {
            child: spawn(binaries, &address, data.path()),
            endpoint: format!("http://{address}"),
            address,
            data,
        };
        minio.wait_live().await;
        minio
    }

    async fn wait_live(&self) {
        eventually("MinIO answers", async || {
            let live = reqwest::get(format!("{}/minio/health/live", self.endpoint)).await;
            live.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
    }

    pub fn stop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }

    /// With the data that it had.
    pub async fn go_on(&mut self, binaries: &Path) {
        self.child = spawn(binaries, &self.address, self.data.path());
        self.wait_live().await;
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        self.stop();
    }
}

/// MinIO's client, with a configuration of its own.
pub struct Client {
    program: PathBuf,
    config: TempDir,
}

impl Client {
    pub fn new(binaries: &Path) -> Client {
        Client {
            program: binaries.join("mc"),
            config: tempfile::tempdir().unwrap(),
        }
    }

    pub fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.program)
            .arg("--config-dir")
            .arg(self.config.path())
            .args(arguments)
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "mc {arguments:?}: {err}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Makes both buckets, with versions; everything that is in the first goes to the second.
    pub fn replicate(&self, home: (&Minio, &str), far: (&Minio, &str)) {
        for (alias, (minio, bucket)) in [("home", home), ("far", far)] {
            self.run(&["alias", "set", alias, &minio.endpoint, USER, PASSWORD]);
            self.run(&["mb", "--with-versioning", &format!("{alias}/{bucket}")]);
        }
        let address = far.0.endpoint.strip_prefix("http://").unwrap();
        let remote = format!("http://{USER}:{PASSWORD}@{address}/{}", far.1);
        let rule = ["replicate", "add", &format!("home/{}", home.1), "--remote-bucket", &remote];
        self.run(&[&rule[..], &["--replicate", "existing-objects", "--priority", "1"]].concat());
    }
    /// By which MinIO knows where the bucket's objects go.
    pub fn remote_arn(&self, bucket: &str) -> String {
        let rules: serde_json::Value = serde_json::from_str(&self.run(&["replicate", "ls", "--json", bucket])).unwrap();
        rules["rule"]["Destination"]["Bucket"].as_str().unwrap().to_owned()
    }
}
