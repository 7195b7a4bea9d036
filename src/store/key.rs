//! Which keys may be used: those that every store can hold under the same name, so that an archive can be copied between them.

use super::StoreError;

/// S3's limit. It includes the prefix of the URL; what that takes away S3 itself refuses.
const KEY_BYTES_MAX: usize = 1024;
/// NAME_MAX of Linux filesystems.
const PART_BYTES_MAX: usize = 255;

/// Refuses a key that no object may have.
pub fn check(url: &str, verb: &str, key: &str) -> Result<(), StoreError> {
    match fault(key) {
        None => Ok(()),
        Some(reason) => Err(refused(url, verb, key, reason)),
    }
}

/// Refuses a prefix that no key can begin with; the last part may be cut anywhere.
pub fn check_prefix(url: &str, prefix: &str) -> Result<(), StoreError> {
    let (folder, rest) = match prefix.rsplit_once('/') {
        Some((folder, rest)) => (Some(folder), rest),
        None => (None, prefix),
    };
    let rest_fault = if rest.is_empty() { None } else { part_fault(rest) };
    match folder.and_then(fault).or(rest_fault) {
        None => Ok(()),
        Some(reason) => Err(refused(url, "list", prefix, reason)),
    }
}

/// What an error says was tried. A listing of everything has no key.
pub(super) fn operation(verb: &str, key: &str) -> String {
    format!("{verb} {key}").trim_end().to_owned()
}

/// Why an object may not have this key.
pub(super) fn fault(key: &str) -> Option<&'static str> {
    if key.len() > KEY_BYTES_MAX {
        return Some("the key is longer than 1024 bytes");
    }
    key.split('/').find_map(part_fault)
}

fn part_fault(part: &str) -> Option<&'static str> {
    if part.is_empty() {
        Some("the key has an empty part")
    } else if part.starts_with('.') {
        // `..` would leave the folder; the rest would hide beside the store's own dot files.
        Some("a part of the key begins with a dot")
    } else if part.chars().any(char::is_control) {
        // S3's listings are XML 1.0, which cannot carry them; a terminal obeys them.
        Some("the key has a control character")
    } else if part.len() > PART_BYTES_MAX {
        Some("a part of the key is longer than 255 bytes")
    } else {
        None
    }
}

fn refused(url: &str, verb: &str, key: &str, reason: &str) -> StoreError {
    StoreError::Refused {
        url: url.to_owned(),
        operation: format!("{verb} `{}`", key.escape_debug()),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_archives_keys_and_refuses_hostile_ones() {
        let long = "x".repeat(PART_BYTES_MAX + 1);
        let deep = "x/".repeat(KEY_BYTES_MAX / 2) + "x";
        for good in ["a", "shard_1/2026/November/1/uuid/1_b.000001.zst", "a b/ü", "a..b", "-", "~"] {
            assert_eq!(fault(good), None, "{good}");
        }
        for bad in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "../a",
            "a/../b",
            "a/.",
            ".tmp/x",
            "a/.b",
            "a\0",
            "a\nb",
            "a/\x1b[2J",
            &long,
            &deep,
        ] {
            assert!(fault(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn a_prefix_may_end_anywhere_but_not_lead_out() {
        for good in ["", "a", "a/", "a/b", "a/b/"] {
            assert!(check_prefix("file:///s", good).is_ok(), "{good}");
        }
        for bad in ["/", "..", "../", "a/../", "a//", "/a", ".t", "a/."] {
            assert!(check_prefix("file:///s", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_refusal_names_the_key_without_sending_it_to_the_terminal() {
        let error = check("file:///s", "put", "a\x1b[2J").unwrap_err();
        assert_eq!(
            error.to_string(),
            "store file:///s refused to put `a\\u{1b}[2J`: the key has a control character"
        );
    }
}
