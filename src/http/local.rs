//! Requests in plaintext to the metadata services of clouds, which are part of the host or its next neighbour.
//!
//! These services answer with credentials and have no TLS. So the addresses are fixed here, a name is never resolved, no proxy sees the request,
//! and its connection is not shared with other requests.
//!
//! Source: AWS, "Use the Instance Metadata Service to access instance metadata"; AWS, "Amazon ECS task IAM role"; AWS, "EKS Pod Identity".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::buffers::Buffers;
use crate::http::exchange::exchange;
use crate::http::watch::Watch;
use crate::http::{Progress, Request, Response, TransportError, TransportErrorKind};
use crate::rt::Runtime;
use crate::wire::uri::{Endpoint, Scheme};

/// A kind of metadata service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetadataService {
    /// Of a container on ECS, or of a pod on EKS.
    Container,
    /// Of a virtual machine on EC2.
    Instance,
}

const CONTAINER: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];
const INSTANCE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

impl MetadataService {
    /// Returns `true` if requests to this server are sent in plaintext: it is on this host, or has an address of the service.
    pub(crate) fn is_at(self, endpoint: &Endpoint) -> bool {
        let addresses: &[IpAddr] = if self == Self::Container { &CONTAINER } else { &INSTANCE };
        let is_listed = endpoint.host.parse().is_ok_and(|address| addresses.contains(&address));
        endpoint.scheme == Scheme::Http && (is_listed || endpoint.is_loopback())
    }
}

/// Sends a request in plaintext to a metadata service, on a connection of its own and without a proxy.
///
/// # Errors
/// `Invalid` if the service is not [at](MetadataService::is_at) this server.
pub(crate) async fn exchange_metadata(
    runtime: &dyn Runtime,
    service: MetadataService,
    request: &Request,
) -> Result<Response, TransportError> {
    let endpoint = &*request.endpoint;
    let failed = |kind| TransportError::new(kind, Progress::NotSent, "connect");
    if !service.is_at(endpoint) {
        return Err(failed(TransportErrorKind::Invalid)
            .because("it is neither on this host nor the address of a metadata service"));
    }
    let mut watch = Watch::new(runtime, request.timeouts.overall);
    watch.enter("connect", request.timeouts.connect);
    let connection = watch.run(runtime.connect(&endpoint.host, endpoint.port)).await?;
    let mut connection = connection.map_err(|error| failed(TransportErrorKind::Connect).because(error))?;
    let (response, _) = exchange(&mut *connection, request, false, &Buffers::new(0), &mut watch).await?;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_and_metadata_services_are_reached_in_plaintext() {
        for (text, container, instance) in [
            ("http://169.254.169.254", false, true),
            ("http://[fd00:ec2::254]", false, true),
            ("http://169.254.170.2", true, false),
            ("http://169.254.170.23", true, false),
            ("http://[fd00:ec2::23]", true, false),
            ("http://127.0.0.1:9911", true, true),
            ("http://[::1]", true, true),
            ("http://localhost:51679", true, true),
            ("https://169.254.169.254", false, false),
            ("http://169.254.169.253", false, false),
            ("http://169.254.170.3", false, false),
            ("http://[fd00:ec2::255]", false, false),
            ("http://[::ffff:169.254.169.254]", false, false),
            ("http://10.0.0.1", false, false),
            ("http://169.254.169.254.example.com", false, false),
            ("http://metadata.example.com", false, false),
            ("http://0.0.0.0", false, false),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(MetadataService::Container.is_at(&endpoint), container, "{text}");
            assert_eq!(MetadataService::Instance.is_at(&endpoint), instance, "{text}");
        }
    }
}
