//! The recoverable window of a history, exactly: by reading what only reading tells.

use crate::{
    archive::{
        gaps::{self, Holding, Window},
        listing::Archive,
        survey::{Fault, Survey},
    },
    support::hint::render,
};

use super::{
    plan::{Request, assemble, find_path, fit_for_all},
    resolve::resolve,
    target::{History, Target, path_binlogs},
};

/// What can be recovered of a history.
#[derive(Debug, Default)]
pub struct Recoverable {
    pub window: Window,
    /// Commit of the last transaction that can be had; None where there is a problem.
    pub until_us: Option<i64>,
    /// Why the newest moment cannot be recovered.
    pub problem: Option<String>,
}

/// Reads the newest binlog of `timeline`'s path, or of the current one, and those that are not sealed. Where a sealed one turns out to
/// be damaged, `survey` is made anew without it.
pub async fn recoverable(archive: &Archive, timeline: Option<u32>, survey: &mut Survey) -> Recoverable {
    let mut damaged = Vec::new();
    loop {
        let (recoverable, new) = look(archive, timeline, survey, &damaged).await;
        let Some(fault) = new else { return recoverable };
        damaged.push(fault);
        match archive.survey_without(&damaged).await {
            Ok(without) => *survey = without,
            Err(_) => return recoverable,
        }
    }
}

/// What can be recovered, and which object that was not known to be damaged stands in the way of more.
async fn look(archive: &Archive, timeline: Option<u32>, survey: &Survey, damaged: &[Fault]) -> (Recoverable, Option<Fault>) {
    let path = match find_path(archive, survey, timeline) {
        Ok(path) => path,
        Err(e) => {
            let recoverable = Recoverable {
                problem: Some(render(&e)),
                ..Recoverable::default()
            };
            return (recoverable, None);
        }
    };
    let binlogs = path_binlogs(&path, survey.binlogs.clone());
    let request = Request::new(Target::Latest);
    let history = History {
        snapshots: &fit_for_all(&path, survey, &request.skip),
        ..History::new(&path, &binlogs, &survey.faults)
    };
    let resolved = resolve(archive, history, &request.target).await;
    let mut holdings: Vec<Holding> = binlogs.iter().map(|b| Holding::from(&*b.binlog)).collect();
    for (i, gtids) in resolved.iter().flat_map(|r| &r.read) {
        holdings[*i].gtids.get_or_insert_with(|| gtids.clone());
    }
    let window = gaps::window(&path, &survey.snapshots, &holdings.iter().collect::<Vec<_>>());
    let plan = resolved.and_then(|resolved| assemble(&request, survey, &path, &binlogs, resolved));
    let new = plan.as_ref().err().and_then(|e| Fault::of_new_damage(e, damaged));
    let recoverable = Recoverable {
        window,
        until_us: plan.as_ref().ok().and_then(|p| p.last.as_ref()).map(|stop| stop.commit_us),
        problem: plan.err().as_ref().map(render),
    };
    (recoverable, new)
}
