//! TLS 1.3 between two dunlins: the receiver makes a certificate for one run,
//! the source pins its fingerprint from the token. No authority is asked.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme, version,
};

use super::secret::fingerprint;
use crate::base::{Blame, Error, Result};

/// The name in every certificate; the fingerprint is what counts.
pub const NAME: &str = "dunlin";

/// A certificate for one run, and what a server needs to use it.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate in DER.
    pub certificate: Vec<u8>,
    /// Ready for accepting.
    pub config: Arc<ServerConfig>,
}

impl Identity {
    /// Makes a fresh self-signed certificate.
    ///
    /// # Errors
    /// Key or certificate cannot be made.
    pub fn fresh() -> Result<Self> {
        let fail = |e: rcgen::Error| Error::other(Blame::Us, "make certificate", e);
        let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).map_err(fail)?;
        let certificate = made.cert.der().to_vec();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_protocol_versions(&[&version::TLS13])
            .and_then(|b| {
                b.with_no_client_auth()
                    .with_single_cert(vec![CertificateDer::from(certificate.clone())], key)
            })
            .map_err(|e| Error::other(Blame::Us, "use certificate", e))?;
        Ok(Self {
            certificate,
            config: Arc::new(config),
        })
    }
}

/// A client that talks only to the holder of the certificate with this
/// fingerprint.
///
/// # Errors
/// The provider cannot speak TLS 1.3: a bug.
pub fn pinned_client(pin: [u8; 32]) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(provider::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|e| Error::other(Blame::Us, "set up TLS", e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pin, provider }))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Fingerprints are public: no secret is compared here.
        if fingerprint(end_entity) == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
