//! Binlogs of a shop: what a backlog consists of. Orders are taken a few dozen at a time and changed in batches and one by one, with
//! words, numbers, times, JSON and one random token each: zstd makes a sixth to a quarter of it, as of other people's binlogs.

use mysql_pitr::mysql::query::Session;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::task::JoinSet;

use crate::support::mysql::Server;

const WRITERS: u64 = 2;
/// Every writer's ids lie between its number times this and the next one's.
const IDS_PER_WRITER: u64 = 1_000_000_000;
const ROWS_PER_INSERT: u64 = 50;
const BATCH_CHANGES: usize = 3;
const SINGLE_CHANGES: usize = 10;
/// How far back orders are still changed.
const RECENT_ROWS: u64 = 20_000;
const NAMES: [&str; 12] = [
    "Ada Lovelace",
    "Björn Ångström",
    "Chloë Dupont",
    "Dmitrij Petrow",
    "Eve O'Brien",
    "Ümit Yılmaz",
    "Li Na",
    "Zoë Jansen",
    "Grace Hopper",
    "Marta Kowalska",
    "Rosa Parks",
    "Tove Jansson",
];
const STREETS: [&str; 8] = [
    "Main Street",
    "Hauptstraße",
    "Rue de la Paix",
    "Via Roma",
    "Calle Mayor",
    "Prinsengracht",
    "Storgatan",
    "High Road",
];
const CITIES: [&str; 8] = [
    "London",
    "Berlin",
    "Paris",
    "Milano",
    "Madrid",
    "Amsterdam",
    "Stockholm",
    "Leeds",
];
const ARTICLES: [&str; 10] = [
    "bicycle bell",
    "inner tube 28 inch",
    "saddle",
    "chain 9-speed",
    "mug",
    "front light",
    "pump",
    "helmet M",
    "lock",
    "basket",
];
const STATES: [&str; 4] = ["paid", "packed", "shipped", "returned"];

/// For the reports.
pub const DESCRIPTION: &str = "a shop's orders: rows of about 330 bytes (words, numbers, times, JSON, a random token of 16 bytes), \
    inserted 50 at a time, changed 50 at a time and one by one, full row images";

/// Writes until the server's binlogs have grown by `bytes`.
pub async fn fill(server: &Server, bytes: u64) {
    server
        .execute(&[
            "CREATE DATABASE IF NOT EXISTS shop",
            "CREATE TABLE IF NOT EXISTS shop.orders (id BIGINT PRIMARY KEY, customer VARCHAR(60) NOT NULL, email VARCHAR(100) NOT NULL, \
             address VARCHAR(120) NOT NULL, status VARCHAR(16) NOT NULL, total DECIMAL(12,2) NOT NULL, placed_at DATETIME(6) NOT NULL, \
             changed_at DATETIME(6) NULL, token BINARY(16) NOT NULL, detail JSON NOT NULL)",
        ])
        .await;
    let goal = binlog_bytes(&mut server.root().await).await + bytes;
    let mut writers = JoinSet::new();
    for number in 0..WRITERS {
        let session = server.root().await;
        writers.spawn(write(session, number, goal));
    }
    writers.join_all().await;
}

async fn binlog_bytes(session: &mut Session) -> u64 {
    session
        .binary_logs()
        .await
        .expect("the server's binlogs")
        .iter()
        .map(|b| b.bytes)
        .sum()
}

async fn write(mut session: Session, number: u64, goal: u64) {
    let mut rng = StdRng::seed_from_u64(number);
    let (first, mut next) = (number * IDS_PER_WRITER, number * IDS_PER_WRITER);
    while binlog_bytes(&mut session).await < goal {
        let rows: Vec<String> = (next..next + ROWS_PER_INSERT).map(|id| order(&mut rng, id)).collect();
        next += ROWS_PER_INSERT;
        let mut statements = vec![format!("INSERT INTO shop.orders VALUES {}", rows.join(","))];
        for _ in 0..BATCH_CHANGES {
            statements.push(change(&mut rng, first, next, ROWS_PER_INSERT));
        }
        for _ in 0..SINGLE_CHANGES {
            statements.push(change(&mut rng, first, next, 1));
        }
        for sql in &statements {
            session.execute(sql).await.expect("the shop writes");
        }
    }
}

fn order(rng: &mut StdRng, id: u64) -> String {
    let name = pick(rng, &NAMES);
    let (first_name, last_name) = name.split_once(' ').unwrap_or((name, ""));
    let lines: Vec<String> = (0..rng.random_range(1..4))
        .map(|_| {
            let (article, quantity, cents) = (pick(rng, &ARTICLES), rng.random_range(1..9), rng.random_range(99..9_999));
            format!(r#"{{"article": "{article}", "quantity": {quantity}, "cents": {cents}}}"#)
        })
        .collect();
    format!(
        r#"({id}, "{name}", "{first_name}.{}@example.com", "{} {}, {:05} {}", "new", {}.{:02}, NOW(6), NULL, X'{:032x}', '{{"lines": [{}], "channel": "web"}}')"#,
        last_name.len() + rng.random_range(0..5000),
        pick(rng, &STREETS),
        rng.random_range(1..200),
        rng.random_range(10_000..99_999),
        pick(rng, &CITIES),
        rng.random_range(1..900),
        rng.random_range(0..100),
        rng.random::<u128>(),
        lines.join(", "),
    )
}

/// Changes so many of the newer orders.
fn change(rng: &mut StdRng, first: u64, next: u64, rows: u64) -> String {
    let oldest = next.saturating_sub(RECENT_ROWS).max(first);
    let from = rng.random_range(oldest..=next - rows);
    let (status, cents) = (pick(rng, &STATES), rng.random_range(1..100));
    format!(
        "UPDATE shop.orders SET status = '{status}', total = total + 0.{cents:02}, changed_at = NOW(6) WHERE id >= {from} AND id < {}",
        from + rows
    )
}

fn pick<'a>(rng: &mut StdRng, from: &[&'a str]) -> &'a str {
    from.choose(rng).expect("a list that is not empty")
}
