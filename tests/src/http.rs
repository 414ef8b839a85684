//! HTTP GET requests from a place to a server, and no other part of HTTP.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use serde_json::Value;

use crate::place::Place;

/// The response to a GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// Header fields, their names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body of the response.
    pub body: String,
}

impl HttpResponse {
    /// The value of a header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_lowercase(), value.trim().to_owned()))
        };
        Some(Self {
            status,
            headers: lines.filter_map(field).collect(),
            body: body.to_owned(),
        })
    }
}

impl Place {
    /// Sends a GET to a server that closes the connection after its response.
    pub fn http_get(&self, to: SocketAddr, path: &str) -> io::Result<HttpResponse> {
        let mut stream = self.tcp_connect(to)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        HttpResponse::parse(&text).ok_or_else(|| io::Error::other(format!("no HTTP: {text}")))
    }
}
