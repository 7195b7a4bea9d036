//! The steady write load: one connection for each application, all of them telling the truth what was acknowledged.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, anyhow, bail};
use mysql_pitr::{
    binlog::gtid::Gtid,
    mysql::{endpoint::Endpoint, wire::WireError},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    client::Client,
    schema::Step,
    truth::{Change, Truth},
    workload::{Application, applications},
};

/// Each writer begins a transaction this often: a load that two cores carry beside everything else.
const WRITER_PACE: Duration = Duration::from_millis(4);
/// For anything that the load is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
const ER_NO_SUCH_TABLE: u16 = 1146;

/// Writers at work. Dropped, they stop where they are.
pub struct Load {
    truth: Arc<Truth>,
    writers: JoinSet<anyhow::Result<End>>,
    stop: watch::Sender<bool>,
    lost: Vec<Lost>,
}

/// How a writer ended.
enum End {
    Asked,
    TableGone(Lost),
}

/// A writer that met a table which is not there any more.
#[derive(Debug, Clone)]
pub struct Lost {
    pub application: &'static str,
    /// What the server told it.
    pub message: String,
}

impl Load {
    pub async fn start(endpoint: &Endpoint, truth: &Arc<Truth>) -> anyhow::Result<Load> {
        let (mut writers, stop) = (JoinSet::new(), watch::Sender::new(false));
        for application in applications() {
            let client = Client::connect(endpoint).await.context("a writer cannot connect")?;
            writers.spawn(write(client, application, truth.clone(), stop.subscribe()));
        }
        Ok(Load {
            truth: truth.clone(),
            writers,
            stop,
            lost: Vec::new(),
        })
    }

    pub fn writers(&self) -> usize {
        self.writers.len()
    }

    /// Goes on for so many transactions more.
    pub async fn go_on(&mut self, transactions: u64) -> anyhow::Result<()> {
        let (truth, goal) = (self.truth.clone(), self.truth.transactions() + transactions);
        let mut reached = std::pin::pin!(timeout(PATIENCE, truth.reached(goal)));
        loop {
            tokio::select! {
                in_time = &mut reached => return in_time.map_err(|_| anyhow!("the writers hardly get on: see the server's error log")),
                Some(ended) = self.writers.join_next() => self.note(ended??),
            }
        }
    }

    /// Waits until some writer has met a table that is gone, and returns who did.
    pub async fn first_lost(&mut self) -> anyhow::Result<Lost> {
        loop {
            if let Some(lost) = self.lost.first() {
                return Ok(lost.clone());
            }
            match timeout(PATIENCE, self.writers.join_next()).await {
                Ok(Some(ended)) => self.note(ended??),
                Ok(None) => bail!("no writer noticed that the table is gone"),
                Err(_) => bail!("no writer noticed within {} s that the table is gone", PATIENCE.as_secs()),
            }
        }
    }

    /// Lets every writer finish its transaction. Returns those that had lost their table.
    pub async fn stop(mut self) -> anyhow::Result<Vec<Lost>> {
        self.stop.send_replace(true);
        while let Some(ended) = self.writers.join_next().await {
            self.note(ended??);
        }
        Ok(self.lost)
    }

    fn note(&mut self, end: End) {
        if let End::TableGone(lost) = end {
            self.lost.push(lost);
        }
    }
}

async fn write(
    mut client: Client,
    mut application: Box<dyn Application>,
    truth: Arc<Truth>,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<End> {
    let mut pace = interval(WRITER_PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut steps = application.opening();
    loop {
        match commit(&mut client, &steps).await {
            Ok(gtid) => truth.acknowledged(gtid, changes(steps)),
            Err(WireError::Server { code, message }) if code == ER_NO_SUCH_TABLE => {
                let application = application.name();
                return Ok(End::TableGone(Lost { application, message }));
            }
            // Whether it was committed is then unknown, and so is the truth.
            Err(e) => return Err(e).context(format!("a transaction of the {} failed", application.name())),
        }
        pace.tick().await;
        if *stop.borrow() {
            return Ok(End::Asked);
        }
        steps = application.next();
    }
}

/// One transaction. Where it fails, dropping the connection rolls it back.
async fn commit(client: &mut Client, steps: &[Step]) -> Result<Gtid, WireError> {
    client.execute("BEGIN").await?;
    for step in steps {
        client.execute(&step.sql).await?;
    }
    let gtid = client.execute("COMMIT").await?;
    gtid.ok_or_else(|| WireError::Protocol("the server acknowledged a commit without its GTID".into()))
}

fn changes(steps: Vec<Step>) -> Vec<Change> {
    steps.into_iter().map(|step| step.change).collect()
}
