//! The HTTP client below the AWS SDK: proxies and certificate authorities as every AWS tool finds
//! them. Nothing here knows of AWS Batch.

use aws_sdk_batch::config::SharedHttpClient;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};

use super::api::BatchFault;

/// `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`; `AWS_CA_BUNDLE` beside the system's authorities.
pub fn client() -> Result<SharedHttpClient, BatchFault> {
    let tls = trust()?;
    let client = Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .tls_context(tls.clone())
            .proxy_config(ProxyConfig::from_env())
            .connector_settings(settings.cloned().unwrap_or_default());
        connector.set_sleep_impl(components.and_then(aws_sdk_batch::config::RuntimeComponents::sleep_impl));
        connector.build()
    });
    Ok(client)
}

fn trust() -> Result<TlsContext, BatchFault> {
    let mut store = TrustStore::default();
    let bundle = std::env::var("AWS_CA_BUNDLE").ok().filter(|path| !path.is_empty());
    if let Some(path) = bundle {
        let pem = std::fs::read(&path).map_err(|error| {
            BatchFault::Invalid(format!("the certificates of AWS_CA_BUNDLE, `{path}`, cannot be read: {error}"))
        })?;
        store = store.with_pem_certificate(pem);
    }
    TlsContext::builder()
        .with_trust_store(store)
        .build()
        .map_err(|error| BatchFault::Invalid(format!("the certificates of AWS_CA_BUNDLE cannot be used: {error}")))
}
