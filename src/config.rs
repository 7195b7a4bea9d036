//! The configuration file: parsed strictly, then validated into what the parts are handed.

mod ebs;
mod orchestrator;
mod replica;
mod store;

pub use replica::{ReplicaSection, Replication};

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::{
    archive::{codec::Codec, keys::Shard, records::Provider},
    mysql::{
        endpoint::{Address, Endpoint, Tls},
        freeze::Lock,
    },
    orchestrator::Options,
    retention::rules::Rules,
    snapshot::{schedule::Schedule, volumes},
    support::{hint::OrHint, secret::Secret},
    volume::{
        disks::{Reach, Shape},
        mount::DEVICE_DIR,
    },
};

use store::StoreSection;

/// Holds the MySQL password where there is no password_file.
pub const PASSWORD_VARIABLE: &str = "MYSQL_PITR_MYSQL_PASSWORD";

/// The validated configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub shard: Shard,
    mysql: Option<MysqlSection>,
    orchestrator: Option<orchestrator::OrchestratorSection>,
    pub store: StoreSection,
    /// The other region's bucket.
    pub replica: Option<ReplicaSection>,
    pub ship: ShipSection,
    pub snapshot: SnapshotSection,
    ebs: ebs::EbsSection,
    pub recover: RecoverSection,
    pub http: HttpSection,
    /// What `prune` keeps.
    pub retention: Rules,
    pub state_path: PathBuf,
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    shard: String,
    mysql: Option<MysqlSection>,
    orchestrator: Option<orchestrator::OrchestratorSection>,
    store: StoreSection,
    replica: Option<ReplicaSection>,
    #[serde(default)]
    ship: ShipSection,
    #[serde(default)]
    snapshot: SnapshotSection,
    #[serde(default)]
    ebs: ebs::EbsSection,
    #[serde(default)]
    recover: RecoverSection,
    #[serde(default)]
    http: HttpSection,
    #[serde(default)]
    retention: RetentionSection,
    #[serde(default)]
    state: StateSection,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct MysqlSection {
    socket: Option<PathBuf>,
    host: Option<String>,
    #[serde(default = "default_port")]
    port: u16,
    user: String,
    password_file: Option<PathBuf>,
    #[serde(default)]
    tls: TlsMode,
    tls_ca: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum TlsMode {
    Disabled,
    #[default]
    Required,
    VerifyCa,
}

/// `[ship]`: how the live binlog is cut.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShipSection {
    #[serde(deserialize_with = "duration")]
    pub flush_interval: Duration,
    pub segment_bytes: bytesize::ByteSize,
    pub codec: Codec,
    /// Closed binlogs that are stored at a time.
    pub backlog_workers: usize,
    /// Where the disk of the server's binlogs has less, nothing keeps the server from purging; 0 for never.
    pub free_space_floor: bytesize::ByteSize,
}

impl Default for ShipSection {
    fn default() -> Self {
        ShipSection {
            flush_interval: Duration::from_secs(1),
            segment_bytes: bytesize::ByteSize::mib(8),
            codec: Codec::Zstd,
            backlog_workers: 4,
            free_space_floor: bytesize::ByteSize::gib(1),
        }
    }
}

/// `[snapshot]`: how snapshots are taken.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotSection {
    pub provider: Provider,
    /// What is locked while a snapshot of volumes begins.
    pub lock: Lock,
    /// mysqld writes the clone there, the agent reads it.
    pub staging_dir: PathBuf,
    pub codec: Codec,
    /// `schema.table` of tables that are not InnoDB and may be empty in snapshots.
    pub accept_empty: Vec<String>,
    /// A crontab line; empty or `off` for none.
    schedule: String,
    /// The schedule's, by its IANA name.
    timezone: String,
    /// By up to so much runs are late, each shard by its own share.
    #[serde(deserialize_with = "duration")]
    jitter: Duration,
}

impl SnapshotSection {
    /// When snapshots are due. None where the schedule is switched off.
    pub fn schedule(&self) -> anyhow::Result<Option<Schedule>> {
        if ["", "off"].contains(&self.schedule.trim()) {
            return Ok(None);
        }
        Schedule::parse(&self.schedule, &self.timezone, self.jitter)
            .map(Some)
            .context("the schedule of [snapshot] is wrong")
    }
}

impl Default for SnapshotSection {
    fn default() -> Self {
        SnapshotSection {
            provider: Provider::Clone,
            lock: Lock::Tables,
            staging_dir: "/var/lib/mysql-pitr-staging".into(),
            codec: Codec::Zstd,
            accept_empty: Vec::new(),
            schedule: "55 23 * * *".to_owned(),
            timezone: "UTC".to_owned(),
            jitter: Duration::ZERO,
        }
    }
}

/// `[recover]`: the server program that recovers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecoverSection {
    pub mysqld: PathBuf,
    /// Who mysqld runs as where `recover` runs as root; `mysql` if there is such a user, else root.
    pub user: Option<String>,
    /// Parallel appliers during the replay.
    pub workers: u16,
    pub volume: VolumeSection,
}

impl Default for RecoverSection {
    fn default() -> Self {
        RecoverSection {
            mysqld: "/usr/sbin/mysqld".into(),
            user: None,
            workers: 8,
            volume: VolumeSection::default(),
        }
    }
}

/// `[recover.volume]`: the volumes that are made from snapshots of EBS volumes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VolumeSection {
    /// These four else as the machine's AWS configuration and its metadata service say.
    region: Option<String>,
    availability_zone: Option<String>,
    instance_id: Option<String>,
    endpoint: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    iops: Option<u32>,
    throughput_mib: Option<u32>,
    initialization_mib: Option<u32>,
    kms_key: Option<String>,
    /// Where an attached volume is found by its id.
    device_dir: PathBuf,
    #[serde(deserialize_with = "duration")]
    device_timeout: Duration,
}

impl Default for VolumeSection {
    fn default() -> Self {
        VolumeSection {
            region: None,
            availability_zone: None,
            instance_id: None,
            endpoint: None,
            kind: Some("gp3".to_owned()),
            iops: None,
            throughput_mib: None,
            initialization_mib: None,
            kms_key: None,
            device_dir: DEVICE_DIR.into(),
            device_timeout: Duration::from_secs(120),
        }
    }
}

impl VolumeSection {
    pub fn reach(&self) -> Reach {
        Reach {
            region: self.region.clone(),
            zone: self.availability_zone.clone(),
            instance: self.instance_id.clone(),
            endpoint: self.endpoint.clone(),
        }
    }

    pub fn shape(&self) -> Shape {
        Shape {
            kind: self.kind.clone(),
            iops: self.iops,
            throughput_mib: self.throughput_mib,
            initialization_mib: self.initialization_mib,
            kms_key: self.kms_key.clone(),
        }
    }

    /// Where an attached volume is found by its id, and how long that may take.
    pub fn devices(&self) -> (PathBuf, Duration) {
        (self.device_dir.clone(), self.device_timeout)
    }
}

/// `[http]`: where the agent tells how it stands.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSection {
    /// None where it is switched off.
    #[serde(deserialize_with = "listen")]
    pub listen: Option<SocketAddr>,
}

/// In the range that Prometheus exporters use (9100 to 9999), apart from those that a MySQL node commonly has.
const HTTP_PORT: u16 = 9823;

impl Default for HttpSection {
    fn default() -> Self {
        HttpSection {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], HTTP_PORT))),
        }
    }
}

fn listen<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text == "off" {
        return Ok(None);
    }
    let wrong = |_| {
        serde::de::Error::custom(format!(
            "`{text}` is no address to listen on; write it as 127.0.0.1:{HTTP_PORT} or [::1]:{HTTP_PORT}, or \"off\""
        ))
    };
    text.parse().map(Some).map_err(wrong)
}

/// `[retention]`: what `prune` keeps.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RetentionSection {
    daily: usize,
    weekly: usize,
    monthly: usize,
    diverged_days: u32,
    #[serde(deserialize_with = "duration")]
    segments_grace: Duration,
    #[serde(deserialize_with = "duration")]
    orphans_grace: Duration,
}

impl Default for RetentionSection {
    fn default() -> Self {
        RetentionSection {
            daily: 7,
            weekly: 4,
            monthly: 12,
            diverged_days: 30,
            segments_grace: Duration::from_hours(1),
            orphans_grace: Duration::from_hours(24),
        }
    }
}

impl RetentionSection {
    fn rules(&self) -> anyhow::Result<Rules> {
        let rules = Rules {
            daily: self.daily,
            weekly: self.weekly,
            monthly: self.monthly,
            diverged: Duration::from_hours(24 * u64::from(self.diverged_days)),
            segments_grace: self.segments_grace,
            orphans_grace: self.orphans_grace,
        };
        rules.validate()?;
        Ok(rules)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateSection {
    path: PathBuf,
}

impl Default for StateSection {
    fn default() -> Self {
        StateSection {
            path: "/var/lib/mysql-pitr/state.db".into(),
        }
    }
}

fn default_port() -> u16 {
    3306
}

fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed: jiff::SignedDuration = text
        .parse()
        .map_err(|_| serde::de::Error::custom(format!("`{text}` is no duration; write it as 100ms, 1s or 5min")))?;
    Duration::try_from(parsed).map_err(|_| serde::de::Error::custom(format!("`{text}` is negative")))
}

/// Segments below this cost more requests than they are worth, and intervals below it too.
const FLUSH_INTERVAL_MIN: Duration = Duration::from_millis(50);
const SEGMENT_BYTES_MIN: u64 = 64 * 1024;
/// A segment is held in memory, compressed, a few times over.
const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Each has a connection to the server, and holds up to 16 MiB where the store is S3.
const BACKLOG_WORKERS_MAX: usize = 16;

impl Config {
    pub fn load(path: &Path) -> anyhow::Result<Config> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))
            .hint("name it with --config")?;
        Config::parse(&text).with_context(|| format!("the configuration {} is wrong", path.display()))
    }

    /// For whoever only reads and writes the archive: everything else is as by default.
    pub fn of_store(shard: &str, url: &str) -> anyhow::Result<Config> {
        let text = |text: &str| toml::Value::from(text);
        Config::parse(&format!("shard = {}\n[store]\nurl = {}\n", text(shard), text(url)))
    }

    /// The same for another shard.
    pub fn with_shard(self, name: &str) -> anyhow::Result<Config> {
        let shard = Shard::try_from(name.to_owned()).map_err(anyhow::Error::msg)?;
        Ok(Config { shard, ..self })
    }

    /// Whether it names a server, as a database node's does.
    pub fn has_server(&self) -> bool {
        self.mysql.is_some()
    }

    pub fn parse(text: &str) -> anyhow::Result<Config> {
        let file: File = toml::from_str(text)?;
        let segment_bytes = file.ship.segment_bytes.as_u64();
        if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes) {
            bail!("[ship] segment_bytes must lie between 64 KiB and 64 MiB");
        }
        if file.ship.flush_interval < FLUSH_INTERVAL_MIN {
            bail!("[ship] flush_interval must be at least 50 ms");
        }
        if !(1..=BACKLOG_WORKERS_MAX).contains(&file.ship.backlog_workers) {
            bail!("[ship] backlog_workers must lie between 1 and {BACKLOG_WORKERS_MAX}");
        }
        if let Some(mysql) = &file.mysql
            && mysql.socket.is_some() == mysql.host.is_some()
        {
            bail!("[mysql] needs either socket or host");
        }
        file.store.validate()?;
        file.snapshot.schedule()?;
        if let Some(replica) = &file.replica {
            replica.validate(&file.store)?;
        }
        file.ebs.validate()?;
        if let Some(orchestrator) = &file.orchestrator {
            orchestrator.validate()?;
        }
        Ok(Config {
            shard: Shard::try_from(file.shard).map_err(anyhow::Error::msg)?,
            mysql: file.mysql,
            orchestrator: file.orchestrator,
            store: file.store,
            replica: file.replica,
            ship: file.ship,
            snapshot: file.snapshot,
            ebs: file.ebs,
            recover: file.recover,
            http: file.http,
            retention: file.retention.rules()?,
            state_path: file.state.path,
        })
    }

    /// How snapshots of volumes are taken. None where the clone plugin takes them.
    pub fn volumes(&self) -> anyhow::Result<Option<volumes::Settings>> {
        match self.snapshot.provider {
            Provider::Clone => Ok(None),
            Provider::Ebs => self.ebs.settings(self.snapshot.lock).map(Some),
        }
    }

    /// How to ask Orchestrator, with the secrets. None where there is none to ask.
    pub fn orchestrator(&self) -> anyhow::Result<Option<Options>> {
        self.orchestrator.as_ref().map(|section| section.options()).transpose()
    }

    /// The server that this node ships from, with its password.
    pub fn endpoint(&self) -> anyhow::Result<Endpoint> {
        let mysql = self.mysql.as_ref().context("the configuration has no [mysql] section")?;
        let address = match (&mysql.socket, &mysql.host) {
            (Some(socket), _) => Address::Socket(socket.clone()),
            (None, host) => Address::Tcp {
                host: host.clone().unwrap_or_default(),
                port: mysql.port,
            },
        };
        let tls = match (mysql.tls, &mysql.tls_ca) {
            (TlsMode::Disabled, _) => Tls::Disabled,
            (TlsMode::Required, _) => Tls::Required,
            (TlsMode::VerifyCa, Some(ca)) => Tls::VerifyCa(ca.clone()),
            (TlsMode::VerifyCa, None) => bail!("[mysql] tls = \"verify-ca\" needs tls_ca"),
        };
        let password = match (&mysql.password_file, std::env::var(PASSWORD_VARIABLE)) {
            (Some(path), _) => Secret::from_file(path)?,
            (None, Ok(text)) => Secret::new(text),
            (None, Err(_)) => bail!("[mysql] needs password_file, or the environment variable {PASSWORD_VARIABLE}"),
        };
        Ok(Endpoint {
            address,
            user: mysql.user.clone(),
            password,
            tls,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = "shard = \"s\"\n[store]\nurl = \"file:///a\"\n";

    #[test]
    fn defaults_fill_what_is_not_said() {
        let config = Config::parse(SMALLEST).unwrap();
        assert_eq!(config.ship.flush_interval, Duration::from_secs(1));
        assert_eq!(config.ship.segment_bytes.as_u64(), 8 << 20);
        assert_eq!(config.recover.workers, 8);
    }

    #[test]
    fn unknown_keys_are_errors_everywhere() {
        for extra in [
            "colour = 1",
            "[ship]\nflush = \"1s\"",
            "[store]\nurl = \"file:///a\"\nurll = 1",
            "[mysql]\nuser = \"u\"\nhosts = \"h\"",
        ] {
            let text = if extra.starts_with("[store]") {
                format!("shard = \"s\"\n{extra}")
            } else if extra.starts_with('[') {
                format!("{SMALLEST}{extra}")
            } else {
                format!("{extra}\n{SMALLEST}")
            };
            let error = format!("{:#}", Config::parse(&text).unwrap_err());
            assert!(error.contains("unknown field"), "{text}: {error}");
        }
    }

    #[test]
    fn durations_and_sizes_are_written_as_people_do() {
        let config = Config::parse(&format!(
            "{SMALLEST}[ship]\nflush_interval = \"250ms\"\nsegment_bytes = \"4MiB\"\ncodec = \"gzip\"\n"
        ))
        .unwrap();
        assert_eq!(config.ship.flush_interval, Duration::from_millis(250));
        assert_eq!(config.ship.codec, Codec::Gzip);
    }

    #[test]
    fn schedules_are_crontabs_and_checked_before_they_are_needed() {
        let parse = |lines: &str| Config::parse(&format!("{SMALLEST}[snapshot]\n{lines}\n"));
        for off in ["schedule = \"\"", "schedule = \"off\""] {
            assert!(parse(off).unwrap().snapshot.schedule().unwrap().is_none());
        }
        assert!(Config::parse(SMALLEST).unwrap().snapshot.schedule().unwrap().is_some());
        assert!(parse("schedule = \"@daily\"\ntimezone = \"Europe/Berlin\"\njitter = \"10min\"").is_ok());
        for (wrong, why) in [
            ("schedule = \"0 0 30 2 *\"", "no day of any year is such a date"),
            ("timezone = \"Mars\"", "there is no time zone `Mars`"),
            ("jitter = \"often\"", "no duration"),
        ] {
            let error = format!("{:#}", parse(wrong).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn rules_that_keep_nothing_or_too_little_are_refused() {
        for (lines, why) in [
            ("daily = 0\nweekly = 0\nmonthly = 0", "keeps no snapshot"),
            ("segments_grace = \"5min\"", "segments_grace must be at least 10 min"),
            ("orphans_grace = \"10min\"", "orphans_grace must be at least 1 h"),
        ] {
            let error = Config::parse(&format!("{SMALLEST}[retention]\n{lines}\n")).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{error:#}");
        }
    }

    #[test]
    fn the_address_to_listen_on_is_a_number_or_off() {
        let listen = |text: &str| Config::parse(&format!("{SMALLEST}[http]\nlisten = \"{text}\"\n")).map(|c| c.http.listen);
        assert_eq!(listen("off").unwrap(), None);
        assert_eq!(listen("[::1]:80").unwrap(), Some("[::1]:80".parse().unwrap()));
        for wrong in ["localhost:9823", "9823", "", "127.0.0.1"] {
            let error = format!("{:#}", listen(wrong).unwrap_err());
            assert!(error.contains("no address to listen on"), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_example_is_right_and_shows_the_defaults() {
        let config = Config::parse(include_str!("../examples/mysql-pitr.toml")).unwrap();
        let defaults = Config::parse(SMALLEST).unwrap();
        assert_eq!(config.ship.flush_interval, defaults.ship.flush_interval);
        assert_eq!(config.ship.segment_bytes, defaults.ship.segment_bytes);
        assert_eq!(config.ship.codec, defaults.ship.codec);
        assert_eq!(config.ship.backlog_workers, defaults.ship.backlog_workers);
        assert_eq!(config.ship.free_space_floor, defaults.ship.free_space_floor);
        assert_eq!(config.recover.workers, defaults.recover.workers);
        assert_eq!(config.recover.mysqld, defaults.recover.mysqld);
        assert_eq!(config.snapshot.staging_dir, defaults.snapshot.staging_dir);
        assert_eq!(config.snapshot.schedule, defaults.snapshot.schedule);
        assert_eq!(config.snapshot.timezone, defaults.snapshot.timezone);
        assert_eq!(config.snapshot.jitter, defaults.snapshot.jitter);
        assert_eq!(config.retention, defaults.retention);
        assert_eq!(config.http.listen, defaults.http.listen);
        assert_eq!(config.state_path, defaults.state_path);
    }
}
