//! Two servers, one a replica of the other, an agent beside each, and one archive.

use std::mem::swap;

use super::{
    mysql::{Server, free_port},
    node::{Agent, Node, SHARD},
    orchestrator::FakeOrchestrator,
    shipped::objects,
};

/// One server and what runs beside it.
pub struct Member {
    pub server: Server,
    pub node: Node,
    pub agent: Option<Agent>,
}

/// A shard whose primary is `primary`, whichever of the two servers that is now.
pub struct Shard {
    pub primary: Member,
    pub replica: Member,
    pub orchestrator: Option<FakeOrchestrator>,
}

/// As Orchestrator discovers the servers here, and with room for nobody else's `server_id`.
fn options(server_id: &str) -> [&str; 2] {
    ["--report-host=127.0.0.1", server_id]
}

impl Shard {
    /// Agents run, there is `d.t`, and a first snapshot. With Orchestrator, the replica is a candidate; without, nobody says who is primary.
    pub async fn start(with_orchestrator: bool) -> Shard {
        let primary = Server::start(&options("--server-id=1")).await;
        primary
            .execute(&[
                "CREATE DATABASE d",
                "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v TEXT)",
            ])
            .await;
        let mut replica = primary.start_clone(&options("--server-id=2")).await;
        replica.replicate_from(&primary).await;
        let (mut orchestrator, mut extra) = (None, String::new());
        if with_orchestrator {
            let fake = FakeOrchestrator::start(&[primary.port, replica.port]).await;
            for port in [primary.port, replica.port] {
                fake.candidate(port, true);
            }
            // Whatever takes longer than a few seconds does not rest on a poll: the next one is five minutes away.
            extra = format!("[orchestrator]\nurls = [\"{}\"]\ntimeout = \"1s\"\n", fake.url());
            orchestrator = Some(fake);
        }
        let extra = || format!("{extra}[http]\nlisten = \"127.0.0.1:{}\"\n", free_port());
        let node = Node::new(&primary, &extra());
        let beside = node.beside_with(&replica, &extra());
        let member = |server, node: Node| Member {
            agent: Some(node.agent()),
            server,
            node,
        };
        let shard = Shard {
            primary: member(primary, node),
            replica: member(replica, beside),
            orchestrator,
        };
        shard.primary.node.wait_snapshots(1).await;
        shard
    }

    pub fn orchestrator(&self) -> &FakeOrchestrator {
        self.orchestrator.as_ref().expect("the shard has one")
    }

    /// A planned switch: nothing is lost. Orchestrator is not told.
    pub async fn switch_over(&mut self) {
        self.primary.server.read_only = true;
        self.primary.server.execute(&["SET GLOBAL super_read_only = ON"]).await;
        let all = self.primary.server.gtid_executed().await;
        self.replica.server.wait_executed(&all).await;
        self.promote().await;
        self.replica.server.replicate_from(&self.primary.server).await;
    }

    /// The replica becomes the primary, as it is. Orchestrator is not told.
    pub async fn promote(&mut self) {
        self.replica.server.promote().await;
        swap(&mut self.primary, &mut self.replica);
    }

    /// Orchestrator sees that the promotion is over.
    pub fn tell_orchestrator(&self) {
        self.orchestrator().set_primary(self.primary.server.port);
    }

    /// The replica has executed what the primary has.
    pub async fn caught_up(&self) {
        let all = self.primary.server.gtid_executed().await;
        self.replica.server.wait_executed(&all).await;
    }
}

/// A test that failed says what the agents said.
impl Drop for Shard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (name, member) in [("primary", &self.primary), ("replica", &self.replica)] {
                let log = std::fs::read_to_string(member.node.dir.path().join("agent.log"));
                println!("---- the {name}'s agent\n{}", log.unwrap_or_default());
            }
            for record in objects(&self.primary.node.archive_dir.join(SHARD).join("timelines")) {
                println!("{}", std::fs::read_to_string(record).unwrap_or_default());
            }
        }
    }
}

impl Member {
    pub fn log(&self) -> String {
        self.agent.as_ref().expect("an agent runs").log()
    }

    pub fn start_agent(&mut self) {
        self.agent = Some(self.node.agent());
    }

    /// kill -9.
    pub async fn kill_agent(&mut self) {
        self.agent.take().expect("an agent runs").kill().await;
    }

    pub async fn stop_agent(&mut self) {
        self.agent.take().expect("an agent runs").stop().await;
    }
}
