//! The node's role: found in every situation that was recorded, kept through everything else, and never waiting for a poll where the
//! server itself has changed. Orchestrator is a fake server that gives recorded answers.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::support::{
    eventually,
    golden::assert_text,
    mysql::Server,
    node::{Node, path_text},
    orchestrator::{ALIAS, FakeOrchestrator, HOST, How, Login},
};
use mysql_pitr::{
    agent::role::{RoleWatch, own_name},
    mysql::endpoint::{Address, Endpoint, Tls},
    orchestrator::{Auth, Client, InstanceKey, Options, Role, Verdict, judge},
    ship::standing::Standing,
    support::{hint::render, secret::Secret},
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

const PORTS: [u16; 3] = [14411, 14412, 14413];
const PRIMARY: u16 = PORTS[0];
const CANDIDATE: u16 = PORTS[1];
const REPLICA: u16 = PORTS[2];
/// The promise: from a change of the server to the role that follows from it.
const PROMOTED_WITHIN: Duration = Duration::from_secs(5);

fn key(port: u16) -> InstanceKey {
    InstanceKey { host: HOST.into(), port }
}

fn options(urls: &[&str]) -> Options {
    Options {
        urls: urls.iter().map(|u| u.parse().unwrap()).collect(),
        poll_interval: Duration::from_secs(300),
        timeout: Duration::from_secs(30),
        instance: None,
        auth: Auth::None,
    }
}

async fn recorded() -> FakeOrchestrator {
    let fake = FakeOrchestrator::start(&PORTS).await;
    fake.candidate(CANDIDATE, true);
    fake
}

async fn verdict(fake: &FakeOrchestrator, port: u16) -> Verdict {
    let view = Client::new(&options(&[fake.url()])).unwrap().view(&key(port)).await.unwrap();
    judge(&view.instances, &key(port)).unwrap()
}

/// Role, confirmed, takes snapshots.
async fn verdicts(fake: &FakeOrchestrator) -> [(Role, bool, bool); 3] {
    let mut found = [(Role::Unknown, false, false); 3];
    for (port, found) in PORTS.into_iter().zip(&mut found) {
        let v = verdict(fake, port).await;
        *found = (v.role, v.confirmed_primary, v.takes_snapshots);
    }
    found
}

/// What a failed question is answered with, without the ports of this run.
async fn error(options: &Options, port: u16) -> String {
    let e = Client::new(options).unwrap().view(&key(port)).await.unwrap_err();
    let mut text = render(&e);
    for (i, url) in options.urls.iter().enumerate() {
        text = text.replace(url.as_str(), &format!("NODE{}", i + 1));
    }
    text
}

#[tokio::test]
async fn the_role_is_found_in_every_recorded_situation() {
    use Role::{CandidatePrimary, Primary, Replica, Unknown};
    let fake = recorded().await;
    let (other, taker) = ((Replica, false, false), (CandidatePrimary, false, true));
    assert_eq!(verdicts(&fake).await, [(Primary, true, false), taker, other]);
    assert_eq!(verdict(&fake, PRIMARY).await.cluster, ALIAS);

    fake.kill(CANDIDATE);
    assert_eq!(
        verdicts(&fake).await,
        [(Primary, true, true), (Unknown, false, false), other],
        "without a living candidate the primary takes the snapshots"
    );
    fake.revive(CANDIDATE);

    fake.kill(PRIMARY);
    assert_eq!(
        verdicts(&fake).await,
        [(Unknown, false, false), taker, other],
        "the primary is dead"
    );

    // By hand, and the plain replica, now a candidate too, is listed under the old name for a while.
    fake.candidate(REPLICA, true);
    fake.promote_by_hand(CANDIDATE);
    assert_eq!(
        verdicts(&fake).await,
        [
            (Unknown, false, false),
            (Primary, true, true),
            (CandidatePrimary, false, false)
        ]
    );
    fake.set_primary(CANDIDATE);
    assert_eq!(
        verdicts(&fake).await,
        [(Unknown, false, false), (Primary, true, false), taker],
        "the promotion is over"
    );

    fake.revive(PRIMARY);
    let back = verdict(&fake, PRIMARY).await;
    assert_eq!(
        (back.role, back.confirmed_primary, back.takes_snapshots),
        (Unknown, false, false)
    );
    assert_eq!(
        back.living_primaries,
        [key(PRIMARY), key(CANDIDATE)],
        "alone in its cluster, and still not alone in the shard"
    );
    assert_eq!(verdict(&fake, CANDIDATE).await.role, Primary);
    fake.set_primary(CANDIDATE);
    assert_eq!(
        verdicts(&fake).await,
        [other, (Primary, true, false), taker],
        "and it was made a replica"
    );
}

#[tokio::test]
async fn two_writable_primaries_confirm_each_other_away() {
    let fake = recorded().await;
    fake.add_primary(REPLICA);
    for port in [PRIMARY, REPLICA] {
        let v = verdict(&fake, port).await;
        assert_eq!(
            (v.role, v.confirmed_primary, v.takes_snapshots),
            (Role::Unknown, false, false)
        );
        assert!(v.unclear.unwrap().contains("127.0.0.1:14411, 127.0.0.1:14413"));
    }
    fake.set_read_only(REPLICA, true);
    assert!(verdict(&fake, PRIMARY).await.confirmed_primary);
}

#[tokio::test]
async fn whatever_is_no_answer_is_an_error_that_says_what_it_was() {
    let (fake, elsewhere) = (recorded().await, recorded().await);
    let plain = options(&[fake.url()]);
    let hasty = Options {
        timeout: Duration::from_millis(300),
        ..plain.clone()
    };
    assert_text("orchestrator: does not know us", &error(&plain, 9999).await, &[]);
    for (case, how, options) in [
        ("orchestrator: no leader", How::NoLeader, &plain),
        ("orchestrator: a web page", How::Garbage, &plain),
        ("orchestrator: an answer without an end", How::Huge, &plain),
        ("orchestrator: no answer", How::Hang, &hasty),
        ("orchestrator: drop by drop", How::Drip, &hasty),
        ("orchestrator: somewhere else", How::Redirect(elsewhere.url().into()), &plain),
    ] {
        fake.misbehave(how);
        assert_text(case, &error(options, PRIMARY).await, &[]);
    }
    assert_eq!(elsewhere.requests(), [], "nobody is followed anywhere");

    let nobody = std::net::TcpListener::bind((HOST, 0)).unwrap().local_addr().unwrap();
    fake.misbehave(How::NoLeader);
    let several = options(&[fake.url(), &format!("http://{nobody}")]);
    assert_text(
        "orchestrator: several nodes, none answers",
        &error(&several, PRIMARY).await,
        &[],
    );
}

#[tokio::test]
async fn any_node_will_do_and_the_one_that_answered_is_asked_first() {
    let (leaderless, hanging, good) = (recorded().await, recorded().await, recorded().await);
    leaderless.misbehave(How::NoLeader);
    hanging.misbehave(How::Hang);
    let mut options = options(&[leaderless.url(), hanging.url(), good.url()]);
    options.timeout = Duration::from_secs(1);
    let client = Client::new(&options).unwrap();
    for _ in 0..3 {
        assert_eq!(client.view(&key(PRIMARY)).await.unwrap().url, options.urls[2]);
    }
    assert_eq!((leaderless.requests().len(), hanging.requests().len()), (1, 1));
    good.misbehave(How::NoLeader);
    leaderless.misbehave(How::Well);
    assert_eq!(
        client.view(&key(PRIMARY)).await.unwrap().url,
        options.urls[0],
        "and once it fails, the others"
    );
}

#[tokio::test]
async fn each_kind_of_login_is_shown_and_never_said() {
    let secret = || Secret::new("public:hunter2");
    let basic = Auth::Basic {
        user: "pitr".into(),
        password: secret(),
    };
    let header = Auth::Header {
        name: "X-Forwarded-User".into(),
        value: secret(),
    };
    for (auth, login) in [
        // echo -n pitr:public:hunter2 | base64
        (basic, Login::Basic("Basic cGl0cjpwdWJsaWM6aHVudGVyMg==".into())),
        (header, Login::Header("x-forwarded-user".into(), "public:hunter2".into())),
        (Auth::Token(secret()), Login::Token("public:hunter2".into())),
    ] {
        let fake = recorded().await;
        fake.require(login);
        let without = options(&[fake.url()]);
        assert_text("orchestrator: refuses us", &error(&without, PRIMARY).await, &[]);
        let with = Options { auth, ..without };
        Client::new(&with).unwrap().view(&key(PRIMARY)).await.unwrap();
        fake.misbehave(How::Garbage);
        assert!(!error(&with, PRIMARY).await.contains("hunter2"));
    }
    let header = Options {
        auth: Auth::Header {
            name: "X".into(),
            value: Secret::new("hunter2\nX-Other: 1"),
        },
        ..options(&["http://127.0.0.1:1"])
    };
    let e = render(&Client::new(&header).unwrap_err());
    assert!(e.contains("no header can bear") && !e.contains("hunter2"), "{e}");
}

/// A role watch that runs until it is dropped.
struct Watch {
    standing: watch::Receiver<Standing>,
    _stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Watch {
    fn start(endpoint: Endpoint, options: Option<Options>) -> Watch {
        let watch = RoleWatch::new(endpoint, options).unwrap();
        let (stop, stopped) = watch::channel(false);
        Watch {
            standing: watch.subscribe(),
            _stop: stop,
            task: tokio::spawn(async move { watch.run(stopped).await }),
        }
    }

    async fn until(&self, patience: Duration, what: &str, is_so: impl FnMut(&Standing) -> bool) -> Standing {
        let mut standing = self.standing.clone();
        match timeout(patience, standing.wait_for(is_so)).await {
            Ok(standing) => standing.unwrap().clone(),
            Err(_) => panic!("not within {patience:?}: {what}; {:?}", *self.standing.borrow()),
        }
    }

    async fn stop(self) {
        drop(self._stop);
        timeout(Duration::from_secs(5), self.task)
            .await
            .expect("it stops at once")
            .unwrap();
    }
}

/// Where nobody listens: the server's own state stays unknown, and Orchestrator is asked all the same.
fn no_server() -> Endpoint {
    Endpoint {
        address: Address::Socket("/no/such/socket".into()),
        user: "u".into(),
        password: Secret::new(""),
        tls: Tls::Disabled,
    }
}

/// Collects what is logged, by all tests of this process: a subscriber of one thread alone may miss what another thread logged first.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn collect() -> Log {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .with_thread_names(true);
        tracing::subscriber::set_global_default(subscriber.finish()).expect("only one test collects");
        log
    }

    /// This test's: each runs on a thread of its own that bears its name.
    fn lines(&self, what: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let thread = std::thread::current().name().expect("test threads have names").to_owned();
        text.lines()
            .filter(|l| l.contains(&thread) && l.contains(what))
            .map(str::to_owned)
            .collect()
    }
}

#[tokio::test]
async fn orchestrator_is_polled_at_its_interval_and_an_outage_is_told_once() {
    const INTERVAL: Duration = Duration::from_secs(1);
    let log = Log::collect();
    let fake = recorded().await;
    let watch = Watch::start(
        no_server(),
        Some(Options {
            poll_interval: INTERVAL,
            instance: Some(key(REPLICA)),
            ..options(&[fake.url()])
        }),
    );
    let polls = || {
        let requests = fake.requests().into_iter();
        requests
            .filter(|(_, hint)| hint != ALIAS)
            .map(|(at, _)| at)
            .collect::<Vec<Instant>>()
    };
    eventually("it was asked four times", async || polls().len() >= 4).await;
    for pair in polls().windows(2) {
        let pause = pair[1] - pair[0];
        assert!(pause >= INTERVAL.mul_f64(0.85), "{pause:?}");
    }
    assert!(log.lines(" WARN ").is_empty());

    fake.misbehave(How::NoLeader);
    let before = polls().len();
    eventually("three more were not answered", async || polls().len() >= before + 3).await;
    let warnings = log.lines(" WARN ");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("the last known role stands"), "{warnings:?}");
    fake.misbehave(How::Well);
    eventually("the end was told", async || {
        !log.lines("tells this server's role again").is_empty()
    })
    .await;
    assert_eq!(log.lines(" WARN ").len(), 1);
    watch.stop().await;
}

/// Nothing waits for the poll, which is five minutes away.
#[tokio::test]
async fn a_changed_server_asks_at_once_and_the_last_role_outlives_an_outage() {
    let mut server = Server::start(&["--read-only=ON"]).await;
    let me = server.port;
    let fake = FakeOrchestrator::start(&[PRIMARY, me]).await;
    fake.candidate(me, true);
    let patience = crate::support::node::PATIENCE;
    let watch = Watch::start(
        server.agent_endpoint(),
        Some(Options {
            instance: Some(key(me)),
            timeout: Duration::from_secs(1),
            ..options(&[fake.url()])
        }),
    );
    let s = watch
        .until(patience, "a candidate", |s| s.role == Role::CandidatePrimary)
        .await;
    assert_eq!((s.ships(), s.takes_snapshots, s.writable), (false, true, Some(false)));
    let asked_before = fake.requests().len();

    // Promoted; Orchestrator discovers it a while after the server has changed.
    fake.kill(PRIMARY);
    server.execute(&["SET GLOBAL read_only = OFF"]).await;
    let s = watch.until(PROMOTED_WITHIN, "it ships", Standing::ships).await;
    assert_eq!(
        (s.role, s.confirmed_by),
        (Role::CandidatePrimary, None),
        "by its own word only"
    );
    eventually("Orchestrator was asked again and again", async || {
        fake.requests().len() >= asked_before + 4
    })
    .await;
    fake.set_primary(me);
    let s = watch
        .until(PROMOTED_WITHIN, "the promotion", |s| s.role == Role::Primary)
        .await;
    assert!(s.confirmed_by.as_ref().unwrap().ends_with("cluster demo"), "{s:?}");
    assert!(s.takes_snapshots, "there is no candidate left");

    // An outage: the confirmation is gone as soon as it is noticed, the role is not.
    fake.misbehave(How::Hang);
    server.execute(&["SET GLOBAL read_only = ON"]).await;
    let s = watch.until(PROMOTED_WITHIN, "deposed", |s| s.role == Role::Replica).await;
    assert_eq!((s.ships(), s.takes_snapshots, s.confirmed_by), (false, false, None));
    server.execute(&["SET GLOBAL read_only = OFF"]).await;
    let s = watch
        .until(PROMOTED_WITHIN, "writable again", |s| s.role == Role::Primary)
        .await;
    assert_eq!((s.ships(), s.confirmed_by.clone()), (true, None), "nobody confirms it");
    assert!(s.age().unwrap() > Duration::ZERO);

    // The server dies: what was known stands. It comes back read-only, as its options say.
    fake.misbehave(How::Well);
    watch.until(patience, "confirmed again", |s| s.confirmed_by.is_some()).await;
    server.kill().await;
    assert_eq!(watch.standing.borrow().role, Role::Primary);
    server.run().await;
    watch
        .until(patience, "read-only after its restart", |s| s.writable == Some(false))
        .await;
    watch.stop().await;

    let alone = Watch::start(server.agent_endpoint(), None);
    server.execute(&["SET GLOBAL read_only = OFF"]).await;
    let s = alone.until(patience, "writable, alone", |s| s.role == Role::Primary).await;
    assert!(s.standalone && s.takes_snapshots && s.confirmed_by.is_none());
    alone.stop().await;
}

#[tokio::test]
async fn check_says_whether_orchestrator_knows_this_node() {
    let server = Server::start(&["--report-host=127.0.0.1"]).await;
    assert_eq!(own_name(&mut server.root().await).await.unwrap(), key(server.port));
    let fake = FakeOrchestrator::start(&[server.port, REPLICA]).await;
    let node = Node::new(
        &server,
        &format!("[orchestrator]\nurls = [\"{}\"]\ntimeout = \"1s\"\n", fake.url()),
    );
    let ours = async || {
        let output = node.run(&["check"]).await;
        let out = String::from_utf8(output.stdout).unwrap();
        let from = out.lines().skip_while(|l| !l.contains(" orchestrator "));
        let lines: Vec<&str> = from
            .take_while(|l| l.contains(" orchestrator ") || l.starts_with(' '))
            .collect();
        (output.status.success(), lines.join("\n"))
    };
    let port = server.port.to_string();
    let url = format!("{}/", fake.url());
    let names = [
        (url.as_str(), "NODE"),
        (port.as_str(), "PORT"),
        (path_text(node.dir.path()), "/NODE"),
    ];
    let (good, said) = ours().await;
    assert!(good, "{said}");
    assert_text("check: orchestrator knows us", &said, &names);
    let agent = node.agent();
    eventually("the agent is told its role", async || {
        let log = agent.log();
        log.contains("this server's role is primary")
            && log.contains("is confirmed as the living, writable primary by Orchestrator at")
    })
    .await;
    agent.stop().await;

    fake.add_primary(REPLICA);
    let (good, said) = ours().await;
    assert!(good, "a split is a warning: {said}");
    let sorted = |said: String| {
        // By port, and this server's is another one in each run.
        let (before, both) = said.split_once("primaries: ").expect("both are named");
        let (both, after) = both.split_once('\n').unwrap();
        let mut both: Vec<&str> = both.split(", ").collect();
        both.sort_by_key(|b| b.ends_with(&REPLICA.to_string()));
        format!("{before}primaries: {}\n{after}", both.join(", "))
    };
    assert_text("check: orchestrator sees a split", &sorted(said), &names);

    fake.misbehave(How::NoLeader);
    let (good, said) = ours().await;
    assert!(!good, "{said}");
    assert_text("check: orchestrator has no leader", &said, &names);
    fake.misbehave(How::Well);
    node.reconfigure("timeout = \"1s\"", "instance = \"db-1:3306\"");
    let (good, said) = ours().await;
    assert!(!good, "{said}");
    assert_text("check: orchestrator does not know us", &said, &names);
    node.reconfigure("instance = \"db-1:3306\"", "auth = \"token\"\ntoken_file = \"/no/such/file\"");
    let (good, said) = ours().await;
    assert!(!good, "{said}");
    assert_text("check: orchestrator's token is not there", &said, &names);
}
