//! The agent's connections over TCP, with TLS and without.

use crate::support::{
    mysql::{PASSWORD, Server},
    node::Node,
};
use mysql_pitr::{
    mysql::{
        dump::{AtEnd, Dump},
        endpoint::{Address, Endpoint, Tls},
        query::Session,
        wire::WireError,
    },
    support::{hint::render, secret::Secret},
};

/// An account that may come over TCP.
async fn allow_tcp(server: &Server) {
    server
        .execute(&[
            "SET sql_log_bin = 0",
            &format!("CREATE USER mysql_pitr@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'"),
            "GRANT REPLICATION SLAVE, REPLICATION CLIENT, BACKUP_ADMIN, PROCESS, SHOW VIEW ON *.* TO mysql_pitr@'127.0.0.1'",
            "GRANT SELECT ON performance_schema.* TO mysql_pitr@'127.0.0.1'",
        ])
        .await;
}

/// A node that reaches the server over TCP; `tls`: lines of the [mysql] section.
fn tcp_node(server: &Server, tls: &str) -> Node {
    let node = Node::new(server, "");
    let socket = format!("socket = \"{}\"", server.socket.display());
    node.reconfigure(&socket, &format!("host = \"127.0.0.1\"\nport = {}\n{tls}", server.port));
    node
}

async fn ships(server: &Server, node: &Node) {
    let agent = node.agent();
    server.execute(&["CREATE DATABASE d", "DROP DATABASE d"]).await;
    node.wait_shipped(server).await;
    node.ok(&["check"]).await;
    agent.assert_quiet();
    agent.stop().await;
}

/// A server that lets nobody in without TLS.
#[tokio::test]
async fn the_agent_ships_over_tls() {
    let server = Server::start(&["--require-secure-transport=ON"]).await;
    allow_tcp(&server).await;
    ships(&server, &tcp_node(&server, "tls = \"required\"")).await;
    assert_both_log_in(&server, Tls::Required).await;
    // MySQL's self-made certificate descends from its self-made CA, but bears no name.
    let unnamed = endpoint(&server, PASSWORD, Tls::VerifyCa(server.datadir.join("ca.pem")));
    for error in [
        render(
            &Session::connect(&unnamed)
                .await
                .err()
                .expect("a query's connection looks at the name"),
        ),
        format!(
            "{:#}",
            anyhow::Error::from(dump(&unnamed).await.err().expect("and so does a stream's"))
        ),
    ] {
        assert!(error.contains("not valid for name"), "{error}");
    }
    let error = tcp_node(&server, "tls = \"disabled\"").fails(&["snapshot"]).await;
    assert!(error.contains("require_secure_transport"), "{error}");
}

/// Without TLS the password goes under the server's public key, unless the server remembers it.
#[tokio::test]
async fn the_agent_ships_over_plain_tcp() {
    let server = Server::start(&[]).await;
    allow_tcp(&server).await;
    ships(&server, &tcp_node(&server, "tls = \"disabled\"")).await;
    assert_both_log_in(&server, Tls::Disabled).await;
}

fn endpoint(server: &Server, password: &str, tls: Tls) -> Endpoint {
    Endpoint {
        address: Address::Tcp {
            host: "127.0.0.1".into(),
            port: server.port,
        },
        user: "mysql_pitr".into(),
        password: Secret::new(password),
        tls,
    }
}

async fn dump(endpoint: &Endpoint) -> Result<Dump, WireError> {
    Dump::open(endpoint, "binlog.000001", 4, AtEnd::Stop).await
}

/// Queries and streams have clients of their own: each logs in by caching_sha2_password's full and fast way.
async fn assert_both_log_in(server: &Server, tls: Tls) {
    const FORGET: &str = "FLUSH LOCAL PRIVILEGES";
    let (right, wrong) = (endpoint(server, PASSWORD, tls.clone()), endpoint(server, "a wrong one", tls));
    server.execute(&[FORGET]).await;
    for _ in 0..2 {
        let session = Session::connect(&right).await;
        session.unwrap_or_else(|e| panic!("{}", render(&e))).close().await;
    }
    server.execute(&[FORGET]).await;
    for _ in 0..2 {
        dump(&right).await.unwrap().next().await.unwrap();
    }
    for remembered in [true, false] {
        if !remembered {
            server.execute(&[FORGET]).await;
        }
        let error = dump(&wrong).await.err().expect("a wrong password is refused").to_string();
        assert!(error.contains("Access denied") && !error.contains("a wrong one"), "{error}");
    }
}
