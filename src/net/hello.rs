//! The first thing said over a connection: who calls, of which cluster, and the secret.
//!
//! Sent once a connection: later calls are a path and a body, and cost no headers of ours.

use super::Credentials;
use hyper::{
    HeaderMap, StatusCode,
    header::{HeaderName, HeaderValue},
};

/// Where a hello goes.
pub(super) const PATH: &str = "/hello";

/// What peers speak; another number is refused, not guessed at.
const FORMAT: &str = "2";

const FORMAT_HEADER: HeaderName = HeaderName::from_static("annal-peer-format");
const NODE: HeaderName = HeaderName::from_static("annal-node");
const CLUSTER: HeaderName = HeaderName::from_static("annal-cluster");
const SECRET: HeaderName = HeaderName::from_static("annal-secret");

/// Who is at the other end of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// The name it gives itself.
    pub(super) node: String,
    /// Its cluster, if it has one.
    pub(super) cluster: Option<String>,
}

/// What this node says of itself. Errors: a name or secret that no header can hold.
pub(super) fn headers(credentials: &Credentials, cluster: Option<&str>) -> Result<HeaderMap, String> {
    let value = |what: &str, text: &str| {
        HeaderValue::from_bytes(text.as_bytes()).map_err(|_| format!("{what} holds control characters"))
    };
    let mut headers = HeaderMap::new();
    headers.insert(FORMAT_HEADER, HeaderValue::from_static(FORMAT));
    headers.insert(NODE, value("the node's name", &credentials.node)?);
    if let Some(cluster) = cluster {
        headers.insert(CLUSTER, value("the cluster's id", cluster)?);
    }
    if let Some(secret) = &credentials.secret {
        let mut secret = value("cluster.secret", secret)?;
        secret.set_sensitive(true);
        headers.insert(SECRET, secret);
    }
    Ok(headers)
}

/// Checks what a peer says of itself; an error tells it what is wrong.
pub(super) fn check(
    credentials: &Credentials,
    headers: &HeaderMap,
) -> Result<Hello, (StatusCode, &'static str)> {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| std::str::from_utf8(v.as_bytes()).ok());
    if text(&FORMAT_HEADER) != Some(FORMAT) {
        return Err((StatusCode::FORBIDDEN, "this node's version speaks otherwise among peers"));
    }
    if let Some(secret) = &credentials.secret {
        let presented = headers.get(&SECRET).ok_or((StatusCode::UNAUTHORIZED, "no cluster.secret came"))?;
        if !same(secret.as_bytes(), presented.as_bytes()) {
            return Err((StatusCode::UNAUTHORIZED, "cluster.secret is another here"));
        }
    }
    let node = text(&NODE).ok_or((StatusCode::UNAUTHORIZED, "no name came"))?.to_owned();
    Ok(Hello { node, cluster: text(&CLUSTER).map(str::to_owned) })
}

/// Compares in a time that tells nothing of where they differ.
fn same(known: &[u8], presented: &[u8]) -> bool {
    known.len() == presented.len()
        && known
            .iter()
            .zip(presented)
            .fold(0, |differences, (a, b)| std::hint::black_box(differences | (a ^ b)))
            == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_opens() {
        let with =
            |secret: Option<&str>| Credentials { node: "Zürich".into(), secret: secret.map(Into::into) };
        let told = |ours: Option<&str>, theirs: Option<&str>| {
            check(&with(ours), &headers(&with(theirs), Some("c")).unwrap())
                .map_err(|(status, _)| status.as_u16())
        };
        let hello = || Hello { node: "Zürich".into(), cluster: Some("c".into()) };
        assert_eq!(told(None, None), Ok(hello()));
        assert_eq!(told(None, Some("x")), Ok(hello()));
        assert_eq!(told(Some("sesame"), Some("sesame")), Ok(hello()));
        for theirs in [None, Some(""), Some("sesamf"), Some("sesam"), Some("sesame ")] {
            assert_eq!(told(Some("sesame"), theirs), Err(401), "{theirs:?}");
        }
    }

    #[test]
    fn another_format_is_refused() {
        let mut said = headers(&Credentials::default(), None).unwrap();
        said.insert(FORMAT_HEADER, HeaderValue::from_static("1"));
        assert_eq!(check(&Credentials::default(), &said).unwrap_err().0, StatusCode::FORBIDDEN);
    }
}
