//! Partitions of AWS, each with a domain of its own.

/// Domain of most regions.
const DOMAIN: &str = "amazonaws.com";
/// Domains of the other regions, by the start of their names.
const OTHERS: [(&str, &str); 6] = [
    ("cn-", "amazonaws.com.cn"),
    ("eu-isoe-", "cloud.adc-e.uk"),
    ("eusc-", "amazonaws.eu"),
    ("us-iso-", "c2s.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov"),
    ("us-isof-", "csp.hci.ic.gov"),
];

/// Domain of AWS for the services of a region.
pub(crate) fn aws_domain(region: &str) -> &'static str {
    OTHERS.iter().find(|(start, _)| region.starts_with(start)).map_or(DOMAIN, |(_, domain)| domain)
}
