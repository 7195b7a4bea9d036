//! An S3 server on loopback, in this process, that remembers when it had stored each object: s3s-fs, over axum.

use std::{
    collections::HashMap,
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use s3s::{
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};

use crate::support::node::{Node, path_text};

const BUCKET: &str = "bench";
const ACCESS_KEY: &str = "bench";
const SECRET_KEY: &str = "not-a-secret";

/// When a PUT began, and when its object was stored.
#[derive(Debug, Clone, Copy)]
pub struct Stored {
    pub begun: Instant,
    pub done: Instant,
}

type Puts = Arc<Mutex<HashMap<String, Stored>>>;

/// A running server. Dropped, it ends.
pub struct S3 {
    endpoint: String,
    puts: Puts,
    task: JoinHandle<()>,
    _root: TempDir,
}

impl S3 {
    pub async fn start() -> S3 {
        let root = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(root.path().join(BUCKET)).expect("the bucket's folder");
        let files = s3s_fs::FileSystem::new(root.path()).unwrap_or_else(|e| panic!("the S3 server's folder: {e:?}"));
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let puts = Puts::default();
        let app = Router::new().fallback(answer).with_state((service.build(), puts.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("the S3 server serves") });
        S3 {
            endpoint,
            puts,
            task,
            _root: root,
        }
    }

    /// Makes `node` keep its archive in this server, under `prefix`.
    pub fn serve(&self, node: &mut Node, prefix: &str) {
        let folder = format!("url = \"file://{}\"", path_text(&node.archive_dir));
        let bucket = format!(
            "url = \"s3://{BUCKET}/{prefix}\"\nregion = \"us-east-1\"\nendpoint = \"{}\"\npath_style = true",
            self.endpoint
        );
        node.reconfigure(&folder, &bucket);
        let environment = [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ];
        node.environment = environment.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    }

    /// What was stored under `prefix` by single PUTs, by key.
    pub fn stored(&self, prefix: &str) -> Vec<(String, Stored)> {
        let start = format!("/{BUCKET}/{prefix}/");
        let puts = self.puts.lock().unwrap_or_else(PoisonError::into_inner);
        puts.iter()
            .filter_map(|(path, stored)| Some((path.strip_prefix(&start)?.to_owned(), *stored)))
            .collect()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State((service, puts)): State<(S3Service, Puts)>, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let is_whole_object = method == Method::PUT && request.uri().query().is_none_or(|q| !q.contains("uploadId"));
    let begun = Instant::now();
    let answered = service.call(request.map(s3s::Body::http_body_unsync)).await;
    let done = Instant::now();
    match answered {
        Ok(response) => {
            if is_whole_object && response.status().is_success() {
                let mut puts = puts.lock().unwrap_or_else(PoisonError::into_inner);
                puts.insert(path, Stored { begun, done });
            }
            response.map(Body::new)
        }
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e:?}")).into_response(),
    }
}
