//! Which folders hold what the server needs to start: without its redo log it does not, and without its binlogs it rolls transactions back
//! that it had committed.

use std::path::{Path, PathBuf};

use crate::{
    archive::records::{FolderRole, HeldFolder},
    mysql::query::Variables,
};

/// The server's folders as its variables name them, absolute; the data folder first. Those that lie in another one are named, too.
pub fn folders(variables: &Variables) -> Vec<HeldFolder> {
    let datadir = variables.datadir();
    let text = |name: &str| variables.get(&[name]).unwrap_or_default().trim().to_owned();
    let mut found = vec![HeldFolder {
        role: FolderRole::Datadir,
        path: datadir.clone(),
    }];
    let mut add = |role, path: PathBuf| {
        let held = HeldFolder { role, path };
        if !found.contains(&held) {
            found.push(held);
        }
    };
    // An empty home says that the files' own paths are absolute.
    let home = text("innodb_data_home_dir");
    for file in text("innodb_data_file_path").split(';') {
        let name = file.split(':').next().unwrap_or_default();
        let path = if home.is_empty() {
            datadir.join(name)
        } else {
            datadir.join(&home).join(name)
        };
        add(FolderRole::System, parent(&path, &datadir));
    }
    for (role, variable) in [
        (FolderRole::Redo, "innodb_log_group_home_dir"),
        (FolderRole::Undo, "innodb_undo_directory"),
        (FolderRole::Doublewrite, "innodb_doublewrite_dir"),
    ] {
        // Of the doublewrite files `#` says that the folder's name is taken as it is.
        let named = text(variable);
        add(role, plain(&datadir.join(named.trim_start_matches('#'))));
    }
    let basename = text("log_bin_basename");
    if !basename.is_empty() {
        add(FolderRole::Binlog, parent(&datadir.join(basename), &datadir));
    }
    let index = text("log_bin_index");
    if !index.is_empty() {
        add(FolderRole::Binlog, parent(&datadir.join(index), &datadir));
    }
    for folder in text("innodb_directories").split(';').filter(|f| !f.trim().is_empty()) {
        add(FolderRole::Tablespaces, plain(&datadir.join(folder.trim())));
    }
    found
}

fn parent(file: &Path, otherwise: &Path) -> PathBuf {
    plain(file.parent().unwrap_or(otherwise))
}

/// Without `.` parts and without a slash at the end.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Vec<(FolderRole, String)> {
        let variables = Variables(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
        let held = folders(&variables).into_iter();
        held.map(|h| (h.role, plain(&h.path).display().to_string())).collect()
    }

    #[test]
    fn everything_in_the_datadir() {
        let found = of(&[
            ("datadir", "/var/lib/mysql/"),
            ("innodb_data_home_dir", ""),
            ("innodb_data_file_path", "ibdata1:12M:autoextend"),
            ("innodb_log_group_home_dir", "./"),
            ("innodb_undo_directory", "./"),
            ("innodb_doublewrite_dir", ""),
            ("innodb_directories", ""),
            ("log_bin_basename", "/var/lib/mysql/binlog"),
            ("log_bin_index", "/var/lib/mysql/binlog.index"),
        ]);
        assert!(found.iter().all(|(_, path)| path == "/var/lib/mysql"), "{found:?}");
        assert!(found.iter().any(|(role, _)| *role == FolderRole::Binlog));
    }

    #[test]
    fn everything_elsewhere() {
        let found = of(&[
            ("datadir", "/data/mysql/"),
            ("innodb_data_home_dir", "/system"),
            ("innodb_data_file_path", "a/ibdata1:12M;ibdata2:12M:autoextend"),
            ("innodb_log_group_home_dir", "/redo/"),
            ("innodb_undo_directory", "undo"),
            ("innodb_doublewrite_dir", "#/dblwr"),
            ("innodb_directories", "/t1; /t2/"),
            ("log_bin_basename", "/logs/mysql-bin"),
            ("log_bin_index", "/index/mysql-bin.index"),
        ]);
        let expected = [
            (FolderRole::Datadir, "/data/mysql"),
            (FolderRole::System, "/system/a"),
            (FolderRole::System, "/system"),
            (FolderRole::Redo, "/redo"),
            (FolderRole::Undo, "/data/mysql/undo"),
            (FolderRole::Doublewrite, "/dblwr"),
            (FolderRole::Binlog, "/logs"),
            (FolderRole::Binlog, "/index"),
            (FolderRole::Tablespaces, "/t1"),
            (FolderRole::Tablespaces, "/t2"),
        ];
        assert_eq!(found, expected.map(|(role, path)| (role, path.to_owned())));
    }

    #[test]
    fn a_server_without_binlogs_has_no_folder_of_them() {
        let found = of(&[
            ("datadir", "/d"),
            ("log_bin_basename", ""),
            ("innodb_data_file_path", "ibdata1:12M"),
        ]);
        assert!(!found.iter().any(|(role, _)| *role == FolderRole::Binlog), "{found:?}");
    }
}
