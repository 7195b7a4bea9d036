//! The agent's configuration file; everything that is left out is as the defaults have it.

use std::path::{Path, PathBuf};

use serde::Serialize;

#[derive(Serialize)]
pub struct Config<'a> {
    pub shard: &'a str,
    pub mysql: MysqlSection<'a>,
    pub store: StoreSection,
    pub snapshot: SnapshotSection,
    pub recover: RecoverSection<'a>,
    pub http: HttpSection,
    pub state: StateSection,
}

#[derive(Serialize)]
pub struct MysqlSection<'a> {
    pub socket: PathBuf,
    pub user: &'a str,
    pub password_file: PathBuf,
}

#[derive(Serialize)]
pub struct StoreSection {
    pub url: String,
}

#[derive(Serialize)]
pub struct SnapshotSection {
    pub schedule: &'static str,
    pub staging_dir: PathBuf,
}

#[derive(Serialize)]
pub struct RecoverSection<'a> {
    pub mysqld: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<&'a str>,
}

#[derive(Serialize)]
pub struct HttpSection {
    pub listen: &'static str,
}

#[derive(Serialize)]
pub struct StateSection {
    pub path: PathBuf,
}
