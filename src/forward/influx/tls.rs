//! TLS towards InfluxDB: the operator's files as the HTTP client wants them, and what a handshake that failed means.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, Error};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// PEM files, read whenever a client is made.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// Certificates to trust instead of Mozilla's
    pub ca: Option<PathBuf>,
    /// The client's own, with those between it and its authority behind it
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl TlsFiles {
    /// Errors are one sentence.
    pub fn config(&self) -> Result<TlsConfig, String> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = &self.ca {
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates(path)?));
        }
        match (&self.certificate, &self.key) {
            (None, None) => {}
            (Some(certificate), Some(key)) => tls = tls.client_cert(Some(pair(certificate, key)?)),
            _ => return Err("a client's certificate and its key go together: give both files, or none".to_owned()),
        }
        Ok(tls.build())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(&read(path)?)
        .map(|item| item.map(|der| Certificate::from_der(&der).to_owned()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{} is no PEM file: {error}", path.display()))?;
    match found.is_empty() {
        true => Err(format!("{} holds no PEM certificate", path.display())),
        false => Ok(found),
    }
}

/// The HTTP client takes for granted that the two fit: one that does not would end the process.
fn pair(certificate: &Path, key: &Path) -> Result<ClientCert, String> {
    let chain = certificates(certificate)?;
    let pem = read(key)?;
    let unusable = |error: String| format!("{} holds no private key that can be used: {error}", key.display());
    let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable(error.to_string()))?;
    let ders = chain.iter().map(|one| CertificateDer::from(one.der().to_vec())).collect();
    let provider = rustls::crypto::ring::default_provider();
    rustls::sign::CertifiedKey::from_der(ders, der, &provider).map_err(|error| {
        format!(
            "the certificate {} and the key {} cannot be used together: {error}",
            certificate.display(),
            key.display()
        )
    })?;
    let key = PrivateKey::from_pem(&pem).map_err(|error| unusable(error.to_string()))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

/// What a failed handshake means when waiting does not help; `None` for all else that can happen to a connection.
pub fn refusal(error: &ureq::Error) -> Option<String> {
    let told = match error {
        ureq::Error::Rustls(error) => error,
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref::<Error>()?,
        _ => return None,
    };
    let advice = match told {
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented => {
            "set tls_ca to the authority that the server's certificate comes from, and write in the URL the host name that \
             stands in it"
        }
        Error::AlertReceived(
            AlertDescription::CloseNotify | AlertDescription::InternalError | AlertDescription::UserCanceled,
        ) => return None,
        Error::AlertReceived(_) => "check tls_certificate and tls_key, and whether the server trusts them",
        Error::InvalidMessage(_) => "check the URL: a port that does not speak TLS belongs to http://",
        Error::PeerIncompatible(_) => "the server must speak TLS 1.2 or 1.3",
        _ => return None,
    };
    Some(format!("TLS with the server fails: {told}; {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("written");
            Some(path)
        };
        let (empty, broken) =
            (file("empty", ""), file("broken", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"));
        for (files, expected) in [
            (TlsFiles { ca: Some(dir.path().join("none")), ..Default::default() }, "none cannot be read"),
            (TlsFiles { ca: empty.clone(), ..Default::default() }, "empty holds no PEM certificate"),
            (TlsFiles { ca: broken.clone(), ..Default::default() }, "broken is no PEM file"),
            (TlsFiles { certificate: empty.clone(), ..Default::default() }, "go together"),
            (TlsFiles { certificate: empty.clone(), key: empty.clone(), ..Default::default() }, "no PEM certificate"),
        ] {
            let message = files.config().expect_err(expected);
            assert!(message.contains(expected), "{message}");
        }
        assert!(TlsFiles::default().config().is_ok());
    }

    #[test]
    fn what_an_operator_has_to_mend_is_told_from_what_passes() {
        use rustls::CertificateError::UnknownIssuer;
        let io = |error: Error| ureq::Error::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, error));
        for (error, expected) in [
            (io(Error::InvalidCertificate(UnknownIssuer)), Some("tls_ca")),
            (ureq::Error::Rustls(Error::InvalidCertificate(UnknownIssuer)), Some("tls_ca")),
            (io(Error::AlertReceived(AlertDescription::CertificateRequired)), Some("tls_certificate")),
            (io(Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)), Some("http://")),
            (io(Error::AlertReceived(AlertDescription::InternalError)), None),
            (ureq::Error::Io(std::io::ErrorKind::ConnectionReset.into()), None),
            (ureq::Error::ConnectionFailed, None),
        ] {
            let found = refusal(&error);
            assert_eq!(found.is_some(), expected.is_some(), "{error:?}: {found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()), "{error:?}");
        }
    }
}
