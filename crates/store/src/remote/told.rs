//! Errors of object stores as one clear sentence: what, where, why, what to do.

use ferroflow_core::port::ObjectError;
use object_store::client::HttpError;

use super::{Kind, Remote};
use crate::error::StoreError;

/// What was being done, in words and as the permission it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    Read,
    Write,
    List,
    Sign,
}

impl Doing {
    pub fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::List => "list",
            Self::Sign => "sign a link to",
        }
    }

    fn permission(self, kind: Kind) -> &'static str {
        match (kind, self) {
            (Kind::S3, Self::Read | Self::Sign) => "s3:GetObject",
            (Kind::S3, Self::Write) => "s3:PutObject",
            (Kind::S3, Self::List) => "s3:ListBucket",
            (Kind::Azure, Self::Write) => "Storage Blob Data Contributor",
            (Kind::Azure, _) => "Storage Blob Data Reader",
            (Kind::Gs, Self::Read | Self::Sign) => "storage.objects.get",
            (Kind::Gs, Self::Write) => "storage.objects.create",
            (Kind::Gs, Self::List) => "storage.objects.list",
            (Kind::Memory, _) => "everything",
        }
    }
}

pub(crate) fn misconfigured(text: String) -> StoreError {
    StoreError::Remote(ObjectError::NotFound(text))
}

pub(super) fn told(remote: &Remote, doing: Doing, key: &str, error: &object_store::Error) -> ObjectError {
    use object_store::Error;
    if let Some(own) = found::<ObjectError>(error) {
        return own.clone();
    }
    let url = remote.url(key);
    let verb = doing.word();
    let status = answer(error).map(|(status, _)| status);
    let bucket = remote.kind.bucket_word();
    match error {
        // Nothing else can be missing where something is written.
        _ if says_no_bucket(error) || (doing == Doing::Write && matches!(error, Error::NotFound { .. })) => {
            ObjectError::NotFound(format!(
                "cannot {verb} `{url}`: there is no {bucket} `{}`; create it, or correct the datastore's root",
                remote.bucket
            ))
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => denied(remote, doing, &url, error),
        Error::NotFound { .. } => ObjectError::NotFound(format!("cannot {verb} `{url}`: there is no such object")),
        _ if matches!(status, Some(400 | 401 | 403)) && says_bad_credentials(error) => {
            denied(remote, doing, &url, error)
        }
        _ => ObjectError::Unavailable(format!("cannot {verb} `{url}`: {}", reason(error))),
    }
}

fn denied(remote: &Remote, doing: Doing, url: &str, error: &object_store::Error) -> ObjectError {
    let bucket = remote.kind.bucket_word();
    let said = said_by_server(error).map_or_else(String::new, |text| format!(" ({text})"));
    ObjectError::Denied(format!(
        "cannot {} `{url}`: access denied{said}; check that the {bucket} exists, and that the credentials in use are \
         right and allow {} on the {bucket} `{}`",
        doing.word(),
        doing.permission(remote.kind),
        remote.bucket
    ))
}

/// The first error of a type in the chain of causes.
fn found<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(wanted) = error.downcast_ref::<T>() {
            return Some(wanted);
        }
        next = error.source();
    }
    None
}

/// Status and body of the server's answer. `object_store` keeps the type that holds them to itself,
/// so they are taken from its text.
fn answer(error: &object_store::Error) -> Option<(u16, String)> {
    const BEFORE: &str = "non-2xx status code: ";
    let text = error.to_string();
    let rest = &text[text.find(BEFORE)? + BEFORE.len()..];
    Some((rest.get(..3)?.parse().ok()?, rest.to_owned()))
}

/// The object is there, and shorter than what was asked for.
pub(crate) fn is_outside(error: &object_store::Error) -> bool {
    answer(error).map(|(status, _)| status) == Some(416) || error.to_string().contains("Wanted range starting at")
}

fn says_no_bucket(error: &object_store::Error) -> bool {
    answer(error).is_some_and(|(_, body)| {
        ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"]
            .iter()
            .any(|word| body.contains(word))
    })
}

fn says_bad_credentials(error: &object_store::Error) -> bool {
    const WORDS: [&str; 6] = [
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "InvalidToken",
        "AccessDenied",
        "AuthenticationFailed",
    ];
    answer(error).is_some_and(|(_, body)| WORDS.iter().any(|word| body.contains(word)))
}

/// `Code: Message` of the server's answer.
fn said_by_server(error: &object_store::Error) -> Option<String> {
    let (_, body) = answer(error)?;
    let part = |tag: &str| {
        let start = body.find(&format!("<{tag}>"))? + tag.len() + 2;
        let end = body[start..].find(&format!("</{tag}>"))? + start;
        Some(body[start..end].trim().replace('\n', " ")).filter(|text| !text.is_empty())
    };
    match (part("Code"), part("Message")) {
        (Some(code), Some(message)) => Some(format!("{code}: {}", message.trim_end_matches('.'))),
        (Some(text), None) | (None, Some(text)) => Some(text),
        (None, None) => None,
    }
}

/// Why a request that may be repeated did not succeed in the end.
fn reason(error: &object_store::Error) -> String {
    if let Some((status, _)) = answer(error) {
        let said = said_by_server(error).map_or_else(String::new, |text| format!(" ({text})"));
        let hint = match status {
            301 | 307 => "; the bucket is in another region: set AWS_REGION to it",
            416 => "; the range is outside of the object",
            429 | 500..=599 => "; it was tried again for as long as that made sense: try later",
            _ => "",
        };
        return format!("the server answered {status}{said}{hint}");
    }
    if error.to_string().contains("redirect without LOCATION") {
        return "the bucket is in another region: set AWS_REGION to it".to_owned();
    }
    let http = found::<HttpError>(error);
    let deepest = http.map_or_else(|| deepest(error), |http| deepest(http));
    match http {
        Some(_) => format!("{deepest}; check the network, the proxy and the endpoint's address"),
        None => deepest,
    }
}

fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
