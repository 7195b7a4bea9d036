//! The volumes that a recovery makes in EC2: what is asked for, what is refused before anything is, and what becomes of them where the
//! recovery cannot go on. No server is needed: it does not come to that.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use mysql_pitr::{
    archive::records::{FolderRole, HeldFolder, Provider, Step, VolumeSnapshot},
    binlog::gtid::GtidSet,
};
use nix::unistd::syncfs;

use crate::support::{
    ebs::{Ec2, Form, Machine, volume_ids},
    golden::{assert_error, assert_text},
    made::{Made, gtid, gtids},
    node::{Node, SHARD, path_text},
};

const HOME_ZONE: &str = "eu-west-1a";
const DR: &str = "eu-central-1";
const DR_ZONE: &str = "eu-central-1b";
const ID: &str = "20261121T101403.120000Z-0a1b2c3d";
/// A mysqld of any version that the tests run with goes on with it.
const VERSION: &str = "8.0.30";
const LEFT: &str = "not everything that was made could be taken away";

/// Copies of two volumes in the other region, with a data folder that no server wrote, and the archive whose snapshot they are.
struct Copied {
    made: Made,
    node: Node,
    dr: Machine,
    datadir: PathBuf,
    logs: PathBuf,
    volumes: Vec<VolumeSnapshot>,
    ec2: Ec2,
}

impl Copied {
    /// `options`: of `[recover.volume]`.
    async fn start(options: &str) -> Option<Copied> {
        let ec2 = Ec2::start()?;
        let (home, dr) = (ec2.machine(HOME_ZONE).await, ec2.machine(DR_ZONE).await);
        let mounted = ec2.mounted_volumes(&home, &["data", "logs"]).await;
        let (datadir, logs) = (ec2.root().join("data/mysql"), ec2.root().join("logs"));
        fs::create_dir(&datadir).unwrap();
        fs::write(datadir.join("ibdata1"), b"of no server").unwrap();
        syncfs(fs::File::open(&datadir).unwrap().as_fd()).unwrap();
        let volumes = ec2.copied(&home, &mounted, DR).await;
        fs::create_dir(ec2.root().join("dr")).unwrap();
        let made = Made::new();
        made.timeline(1, None, 1, GtidSet::new(), GtidSet::new());
        made.sealed(1, 1, 1, GtidSet::new(), &[(gtid(1, 1), 10)]);
        let mut node = Node::without_server(made.dir.path(), &ec2.recover_section(&dr, options));
        node.environment = dr.environment();
        let copied = Copied {
            made,
            node,
            dr,
            datadir,
            logs,
            volumes,
            ec2,
        };
        copied.record(None);
        Some(copied)
    }

    /// Writes the snapshot's record. `apart`: what of the server lies elsewhere, on the data's volume.
    fn record(&self, apart: Option<(FolderRole, &Path)>) {
        let held = |role, path: &Path| HeldFolder {
            role,
            path: path.to_owned(),
        };
        let mut volumes = self.volumes.clone();
        for volume in &mut volumes {
            if volume.mount_point == self.logs {
                volume.holds = vec![held(FolderRole::Binlog, &self.logs)];
            } else {
                volume.holds = vec![held(FolderRole::Datadir, &self.datadir)];
                volume.holds.extend(apart.map(|(role, path)| held(role, path)));
            }
        }
        let logs = self.logs.join("mysql-bin");
        self.made.changed_snapshot(ID, 1, 1, gtids(1, 1, 1), 10, |record| {
            (record.provider, record.step) = (Provider::Ebs, Some(Step::Copied));
            record.server_version = VERSION.to_owned();
            (record.data_key, record.data_bytes, record.stored_bytes) = (String::new(), 0, 0);
            record.volumes = volumes;
            let variables = [("datadir", &self.datadir), ("log_bin_basename", &logs)];
            record.variables = variables
                .map(|(name, path)| (name.to_owned(), path_text(path).to_owned()))
                .into();
        });
    }

    /// What `recover` says, which must fail.
    async fn fails(&self, options: &[&str]) -> String {
        let target = self.ec2.root().join("dr/mysql");
        let arguments = ["recover", "--latest", "--target-dir", path_text(&target)];
        let said = self.node.fails(&[&arguments, options].concat()).await;
        println!("{said}");
        said
    }

    fn assert_error(&self, case: &str, said: &str) {
        assert_error(case, said, &self.names(&volume_ids(said)));
    }

    fn names<'n>(&'n self, volumes: &'n [String]) -> Vec<(&'n str, &'static str)> {
        let mut names = vec![
            (path_text(self.ec2.root()), "ROOT"),
            (self.dr.id.as_str(), "INSTANCE"),
            // They come in the order of their ids.
            ("mysql-pitr-volumes/0", "mysql-pitr-volumes/N"),
            ("mysql-pitr-volumes/1", "mysql-pitr-volumes/N"),
        ];
        names.extend(volumes.iter().map(|v| (v.as_str(), "VOLUME")));
        names
    }

    fn deny(&self, action: &str) {
        self.ec2.behave(|b| {
            b.denied.insert(action.to_owned());
        });
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.ec2.volumes(DR), Vec::<String>::new());
        assert_eq!(fs::read_dir(self.ec2.root().join("dr")).unwrap().count(), 0);
        assert_eq!(self.ec2.mounts().len(), self.volumes.len(), "those of the home region");
    }
}

/// The request without its tags and its token, and the tags.
fn apart_from_tags(form: Form) -> (Form, BTreeMap<String, String>) {
    const TAGS: &str = "TagSpecification.1.";
    let (tags, mut form): (Form, Form) = form.into_iter().partition(|(name, _)| name.starts_with(TAGS));
    assert_eq!(tags[&format!("{TAGS}ResourceType")], "volume");
    let mut by_key = BTreeMap::new();
    for (name, key) in &tags {
        if let Some(tag) = name.strip_suffix(".Key") {
            by_key.insert(key.clone(), tags[&format!("{tag}.Value")].clone());
        }
    }
    let token = form.remove("ClientToken").unwrap();
    assert_eq!(by_key["mysql-pitr:recovery"], token);
    (form, by_key)
}

/// All that is set about a volume is sent, and nothing else is.
#[tokio::test]
async fn volumes_are_made_as_the_configuration_says() {
    const KEY: &str = "arn:aws:kms:eu-central-1:123456789012:key/0a1b2c3d-0000-4000-8000-123456789012";
    const NOTHING: &str = "# nothing";
    let all_but_throughput = format!("type = \"io2\"\niops = 12000\ninitialization_mib = 200\nkms_key = \"{KEY}\"");
    let cases: [(&str, &[(&str, &str)]); 3] = [
        (NOTHING, &[("VolumeType", "gp3")]),
        (
            all_but_throughput.as_str(),
            &[
                ("VolumeType", "io2"),
                ("Iops", "12000"),
                ("VolumeInitializationRate", "200"),
                ("KmsKeyId", KEY),
                ("Encrypted", "true"),
            ],
        ),
        ("throughput_mib = 300", &[("VolumeType", "gp3"), ("Throughput", "300")]),
    ];
    let Some(copied) = Copied::start(NOTHING).await else { return };
    copied.deny("AttachVolume");
    // The data's is asked for first.
    let mut volumes = copied.volumes.clone();
    volumes.sort_by_key(|v| v.mount_point == copied.logs);
    let mut options = NOTHING;
    for (at, (new, more)) in cases.into_iter().enumerate() {
        copied.node.reconfigure(options, new);
        options = new;
        copied.fails(&[]).await;
        let forms = copied.ec2.forms(DR, "CreateVolume").split_off(at * volumes.len());
        assert_eq!(forms.len(), volumes.len());
        for (form, volume) in forms.into_iter().zip(&volumes) {
            let always = [
                ("Action", "CreateVolume"),
                ("Version", "2016-11-15"),
                ("AvailabilityZone", DR_ZONE),
                ("SnapshotId", volume.complete_in(DR).unwrap()),
            ];
            let wanted = always
                .iter()
                .chain(more)
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let (form, tags) = apart_from_tags(form);
            assert_eq!(form, wanted.collect::<Form>(), "{new}");
            let keys: Vec<&str> = tags.keys().map(String::as_str).collect();
            assert_eq!(keys, ["Name", "mysql-pitr:recovery", "mysql-pitr:shard"]);
            assert_eq!(tags["mysql-pitr:shard"], SHARD);
            assert_eq!(tags["Name"], format!("mysql-pitr recovery of {SHARD}"));
        }
    }
    copied.assert_nothing_left();
}

/// A redo log or undo tablespaces that lie apart from the data folder would be missed: that is said before anything is made.
#[tokio::test]
async fn a_server_whose_files_lie_apart_is_refused_before_anything_is_made() {
    let Some(copied) = Copied::start("").await else { return };
    let (data, asked) = (copied.ec2.root().join("data"), copied.ec2.asked(DR));
    for (role, at, case) in [
        (FolderRole::Redo, "redo", "recover onto volumes: the redo log lies apart"),
        (
            FolderRole::Undo,
            "mysql/undo",
            "recover onto volumes: undo tablespaces lie apart",
        ),
    ] {
        copied.record(Some((role, &data.join(at))));
        let said = copied.fails(&[]).await;
        copied.assert_error(case, &said);
        copied.assert_nothing_left();
    }
    assert_eq!(copied.ec2.asked(DR), asked, "nothing was asked for");
}

/// Without the binlogs nobody knows what was committed. And where what was made cannot be given back, all of it is named, and what can be done
/// is done.
#[tokio::test]
async fn what_cannot_be_taken_away_is_named() {
    let Some(copied) = Copied::start("").await else { return };
    let said = copied.fails(&[]).await;
    copied.assert_error("recover onto volumes: a copy without binlogs", &said);
    copied.assert_nothing_left();

    for action in ["DetachVolume", "DeleteVolume"] {
        copied.deny(action);
        let said = copied.fails(&[]).await;
        copied.ec2.behave(|b| b.denied.clear());
        let line = said
            .lines()
            .find(|line| line.starts_with(LEFT))
            .unwrap_or_else(|| panic!("{said}"));
        let left = copied.ec2.volumes(DR);
        let mut named = volume_ids(line);
        named.sort_unstable();
        named.dedup();
        assert_eq!(named, left, "{line}");
        assert_text(
            &format!("recover onto volumes: no permission for {action}"),
            line,
            &copied.names(&named),
        );
        // What failed is said as well, and nothing is mounted any more.
        assert!(said.contains("hold no binlog"), "{said}");
        assert_eq!(copied.ec2.mounts().len(), copied.volumes.len());
        // As the line says.
        copied.fails(&["--restart"]).await;
        copied.assert_nothing_left();
    }
}
