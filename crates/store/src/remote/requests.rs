//! Requests on their way out: counted, and for S3 mended where the library underneath falls short.
//!
//! - A bucket in another region: AWS answers with its name, and the request is signed and sent again.
//! - Keys with empty segments (`a//b`, `a/`), which the library refuses: it is given a stand-in for
//!   what is empty, which goes before the request does and comes back in listings.
//! - The encryption of an object, which the library does not hand on, travels as one more piece of
//!   the object's metadata.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use async_trait::async_trait;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use reqwest::StatusCode;
use reqwest::header::{HeaderName, HeaderValue};

use super::RequestCount;

/// The segment of a key that stands for an empty one.
const EMPTY: &str = "\u{f8ff}";
const EMPTY_IN_URL: &str = "%EF%A3%BF";
/// The metadata that says how an object is encrypted.
pub(super) const ENCRYPTION: &str = "ferroflow-encryption";
static REGION: HeaderName = HeaderName::from_static("x-amz-bucket-region");
static DIGEST: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// Regions that AWS told of, by bucket.
static REGIONS: LazyLock<Mutex<HashMap<String, String>>> = LazyLock::new(Mutex::default);

/// Where a bucket turned out to be.
pub(super) fn region_of(bucket: &str) -> Option<String> {
    REGIONS.lock().unwrap_or_else(PoisonError::into_inner).get(bucket).cloned()
}

/// A key as the library takes it; the same key unless a segment is empty.
pub(super) fn with_stand_ins(key: &str) -> String {
    let segments = key.split('/').map(|segment| if segment.is_empty() { EMPTY } else { segment });
    segments.collect::<Vec<_>>().join("/")
}

/// The other way.
pub(super) fn without_stand_ins(key: &str) -> String {
    key.replace(EMPTY, "")
}

/// Makes the clients through which everything goes.
#[derive(Debug)]
pub(super) struct Connector {
    pub requests: Arc<RequestCount>,
    pub signing: Option<Signing>,
}

/// What it takes to sign a request for S3 again.
#[derive(Clone, Debug)]
pub(super) struct Signing {
    pub bucket: String,
    pub region: String,
    pub credentials: AwsCredentialProvider,
}

#[derive(Debug)]
struct Service {
    inner: HttpClient,
    requests: Arc<RequestCount>,
    signing: Option<Signing>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        let requests = Arc::clone(&self.requests);
        Ok(HttpClient::new(Service { inner, requests, signing: self.signing.clone() }))
    }
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        match &self.signing {
            None => self.send(request).await,
            Some(signing) => self.send_to_s3(signing, request).await,
        }
    }
}

impl Service {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        self.requests.add();
        self.inner.execute(request).await
    }

    async fn send_to_s3(&self, signing: &Signing, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let listing = request.uri().query().is_some_and(|query| query.contains("list-type=2"));
        let elsewhere = region_of(&signing.bucket).filter(|region| *region != signing.region);
        let odd = request.uri().to_string().contains(EMPTY_IN_URL);
        if odd || elsewhere.is_some() {
            signing.sign_again(&mut request, elsewhere.as_deref()).await?;
        }
        let again = request.clone();
        let mut answer = self.send(request).await?;
        if let Some(region) = signing.another_region(&answer, elsewhere.as_deref()) {
            let mut request = again;
            signing.sign_again(&mut request, Some(&region)).await?;
            answer = self.send(request).await?;
        }
        if let Some(how) = answer.headers().get("x-amz-server-side-encryption").cloned() {
            answer.headers_mut().insert(HeaderName::from_static("x-amz-meta-ferroflow-encryption"), how);
        }
        if listing && answer.status() == StatusCode::OK { with_readable_keys(answer).await } else { Ok(answer) }
    }
}

impl Signing {
    /// The bucket's region, if the answer says that it is not the one that was signed for.
    fn another_region(&self, answer: &HttpResponse, signed_for: Option<&str>) -> Option<String> {
        let refused = [301, 307, 400, 403].contains(&answer.status().as_u16());
        let region = answer.headers().get(&REGION).filter(|_| refused)?.to_str().ok()?;
        if region == signed_for.unwrap_or(&self.region) {
            return None;
        }
        let mut known = REGIONS.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(self.bucket.clone(), region.to_owned());
        Some(region.to_owned())
    }

    async fn sign_again(&self, request: &mut HttpRequest, region: Option<&str>) -> Result<(), HttpError> {
        let mut address = request.uri().to_string().replace(EMPTY_IN_URL, "");
        if let Some(region) = region {
            let own = |region: &str| format!("s3.{region}.amazonaws.com");
            address = address.replacen(&own(&self.region), &own(region), 1);
        }
        *request.uri_mut() = address.parse().map_err(|error| HttpError::new(HttpErrorKind::Request, error))?;
        let keys = self.credentials.get_credential().await;
        let keys = keys.map_err(|error| HttpError::new(HttpErrorKind::Request, error))?;
        let headers = request.headers_mut();
        for name in ["authorization", "x-amz-date", "x-amz-security-token"] {
            headers.remove(name);
        }
        let digest = headers.get(&DIGEST).map(HeaderValue::as_bytes);
        let digest = digest.and_then(bytes_of_hex);
        let authorizer = AwsAuthorizer::new(&keys, "s3", region.unwrap_or(&self.region));
        let authorizer = authorizer.with_sign_payload(digest.is_some());
        let signed = authorizer.try_authorize(request, digest.as_deref());
        signed.map_err(|error| HttpError::new(HttpErrorKind::Request, error))
    }
}

/// `None` for what is no number, such as `UNSIGNED-PAYLOAD`.
fn bytes_of_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digits = std::str::from_utf8(text).ok()?;
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}

/// A listing whose keys the library can read.
async fn with_readable_keys(answer: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (parts, body) = answer.into_parts();
    let bytes = body.bytes().await?;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) if text.contains("//") || text.contains("/</") => readable(text).into(),
        _ => bytes,
    };
    Ok(HttpResponse::from_parts(parts, text.into()))
}

/// Puts stand-ins into each key and common prefix.
fn readable(text: &str) -> String {
    let keys = replaced(text, "Key", with_stand_ins);
    replaced(&keys, "Prefix", |prefix| match prefix.strip_suffix('/') {
        Some(folder) => with_stand_ins(folder) + "/",
        None => prefix.to_owned(),
    })
}

fn replaced(text: &str, tag: &str, by: impl Fn(&str) -> String) -> String {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some(start) = rest.find(&open) {
        let from = start + open.len();
        let to = rest[from..].find(&close).map_or(rest.len(), |length| from + length);
        out.push_str(&rest[..from]);
        out.push_str(&by(&rest[from..to]));
        rest = &rest[to..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_empty_segments_go_both_ways() {
        for key in ["a/b", "a//b", "a/", "/a", "//", "a///b/"] {
            let whole = with_stand_ins(key);
            assert!(object_store::path::Path::parse(&whole).is_ok_and(|path| path.as_ref() == whole), "{key}");
            assert_eq!(without_stand_ins(&whole), key);
        }
        assert_eq!(with_stand_ins("a/b"), "a/b");
    }

    #[test]
    fn a_listing_keeps_all_but_its_odd_keys() {
        let text = "<R><Contents><Key>a//b</Key><Size>1</Size></Contents><Contents><Key>a/</Key></Contents></R>";
        let wanted = text.replace("a//b", "a/\u{f8ff}/b").replace("a/<", "a/\u{f8ff}<");
        assert_eq!(readable(text), wanted);
        let prefix = "<CommonPrefixes><Prefix>a//</Prefix></CommonPrefixes><Prefix>a/</Prefix>";
        assert_eq!(readable(prefix), prefix.replace("a//", "a/\u{f8ff}/"));
    }
}
