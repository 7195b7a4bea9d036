//! What has been learned so far, and what stands because of it.

use tokio::time::Instant;

use crate::{
    orchestrator::{Role, Verdict},
    ship::standing::Standing,
};

/// The server's last word, and Orchestrator's.
#[derive(Debug)]
pub(super) struct Knowledge {
    standalone: bool,
    /// None until the server was first reached.
    writable: Option<bool>,
    /// The last verdict that was clear, and when it came.
    clear: Option<(Verdict, Instant)>,
    /// Set by an answer, and gone with whatever might make it untrue.
    confirmed_by: Option<String>,
    confirmed_at: Option<Instant>,
}

impl Knowledge {
    pub(super) fn new(standalone: bool) -> Self {
        Knowledge {
            standalone,
            writable: None,
            clear: None,
            confirmed_by: None,
            confirmed_at: None,
        }
    }

    /// The server says whether it can be written to.
    pub(super) fn looked(&mut self, writable: bool) {
        if self.writable.replace(writable) != Some(writable) {
            self.confirmed_by = None;
        }
    }

    /// `at`: when it was asked.
    pub(super) fn answered(&mut self, url: &str, verdict: Verdict, at: Instant) {
        let confirms = verdict.confirmed_primary && self.writable == Some(true);
        self.confirmed_at = confirms.then_some(at);
        self.confirmed_by = confirms.then(|| format!("Orchestrator at {url}, cluster {}", verdict.cluster));
        if verdict.role != Role::Unknown {
            self.clear = Some((verdict, at));
        }
    }

    /// Orchestrator cannot be reached, or what it says is no answer.
    pub(super) fn unanswered(&mut self) {
        self.confirmed_by = None;
    }

    pub(super) fn standing(&self) -> Standing {
        let told = self.clear.as_ref().map(|(verdict, _)| verdict.role);
        let role = match (self.writable, told) {
            (None, _) => Role::Unknown,
            (Some(true), _) if self.standalone => Role::Primary,
            (Some(false), _) if self.standalone => Role::Replica,
            // Deposed, and Orchestrator does not know it yet.
            (Some(false), Some(Role::Primary)) => Role::Replica,
            (Some(_), told) => told.unwrap_or(Role::Unknown),
        };
        let takes_snapshots = match &self.clear {
            // Those of a primary are not for what it has become; another may take them already.
            Some((verdict, _)) => verdict.takes_snapshots && role == verdict.role,
            None => self.standalone && self.writable == Some(true),
        };
        Standing {
            role,
            confirmed_by: self.confirmed_by.clone(),
            confirmed_at: self.confirmed_at,
            writable: self.writable,
            takes_snapshots,
            answered_at: self.clear.as_ref().map(|(_, at)| *at),
            standalone: self.standalone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://o:3000/";

    fn verdict(role: Role, takes_snapshots: bool) -> Verdict {
        Verdict {
            role,
            confirmed_primary: role == Role::Primary,
            takes_snapshots,
            cluster: "demo".into(),
            living_primaries: Vec::new(),
            living_candidates: Vec::new(),
            unclear: (role == Role::Unknown).then(|| "a split".to_owned()),
        }
    }

    fn told(writable: bool, role: Role, takes_snapshots: bool) -> Knowledge {
        let mut k = Knowledge::new(false);
        k.looked(writable);
        k.answered(URL, verdict(role, takes_snapshots), Instant::now());
        k
    }

    #[test]
    fn alone_a_writable_server_is_the_primary_that_nobody_confirms() {
        let mut k = Knowledge::new(true);
        assert_eq!(k.standing().role, Role::Unknown);
        assert!(!k.standing().ships(), "nothing is known before the first look");
        k.looked(true);
        let s = k.standing();
        assert_eq!(
            (s.role, s.takes_snapshots, s.confirmed_by.clone()),
            (Role::Primary, true, None)
        );
        assert!(s.ships() && s.standalone && s.age().is_none());
        k.looked(false);
        let s = k.standing();
        assert_eq!((s.role, s.takes_snapshots, s.ships()), (Role::Replica, false, false));
    }

    #[test]
    fn a_confirmation_needs_a_writable_server_and_ends_with_any_doubt() {
        assert!(told(false, Role::Primary, false).standing().confirmed_by.is_none());
        let by = "Orchestrator at http://o:3000/, cluster demo";
        let doubts: [fn(&mut Knowledge); 3] = [
            |k| k.looked(false),
            Knowledge::unanswered,
            |k| k.answered(URL, verdict(Role::Unknown, false), Instant::now()),
        ];
        for doubt in doubts {
            let mut k = told(true, Role::Primary, true);
            assert_eq!(k.standing().confirmed_by.as_deref(), Some(by));
            k.looked(true);
            assert_eq!(k.standing().confirmed_by.as_deref(), Some(by), "no news is no doubt");
            doubt(&mut k);
            assert_eq!(k.standing().confirmed_by, None);
            k.looked(true);
            assert_eq!(k.standing().confirmed_by, None, "only Orchestrator confirms again");
        }
    }

    #[test]
    fn the_last_clear_role_stands_through_silence_and_splits() {
        for doubt in [Knowledge::unanswered, |k: &mut Knowledge| {
            k.answered(URL, verdict(Role::Unknown, false), Instant::now());
        }] {
            let mut k = told(true, Role::Primary, true);
            let before = k.standing();
            doubt(&mut k);
            let after = k.standing();
            assert_eq!((after.role, after.takes_snapshots), (Role::Primary, true));
            assert_eq!(after.answered_at, before.answered_at, "its age goes on");
            assert!(after.ships());
        }
    }

    #[test]
    fn a_primary_that_became_read_only_is_a_replica_and_takes_no_snapshots() {
        let mut k = told(true, Role::Primary, true);
        k.unanswered();
        k.looked(false);
        let s = k.standing();
        assert_eq!((s.role, s.takes_snapshots, s.ships()), (Role::Replica, false, false));
        k.looked(true);
        assert_eq!(k.standing().role, Role::Primary, "it was only closed for a while");
    }

    #[test]
    fn a_replica_that_became_writable_ships_unconfirmed() {
        for role in [Role::Replica, Role::CandidatePrimary, Role::Unknown] {
            let mut k = told(false, role, false);
            assert!(!k.standing().ships());
            k.looked(true);
            let s = k.standing();
            assert_eq!((s.role, s.ships(), s.confirmed_by), (role, true, None));
        }
    }

    #[test]
    fn a_candidate_takes_the_snapshots_until_orchestrator_says_otherwise() {
        let mut k = told(false, Role::CandidatePrimary, true);
        assert!(k.standing().takes_snapshots);
        k.looked(true);
        assert!(k.standing().takes_snapshots);
        k.answered(URL, verdict(Role::Primary, false), Instant::now());
        assert!(!k.standing().takes_snapshots);
    }
}
