"""What a TLS event says besides its duration: version, resumption, and how it failed.

Pure: the numbers of a kernel record in, attributes out.
"""

from __future__ import annotations

__all__ = ["FLAGS", "OUTCOMES", "tls_attributes"]

# enum slo_tls_outcome, bpf/include/slo_tls.h
OUTCOMES = {"alert": 1, "closed": 2, "not_tls": 3, "library": 4}
# enum slo_tls_flag
FLAGS = {"resumed": 1, "retried": 2, "local": 4, "hidden": 8, "early": 16}
_OUTCOME_NAMES = {number: name for name, number in OUTCOMES.items()}
_VERSIONS = {0x0300: "SSLv3", 0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}
# The TLS Alerts registry of IANA, which RFC 8446 section 6 began.
_ALERTS = {
    0: "close_notify", 10: "unexpected_message", 20: "bad_record_mac", 21: "decryption_failed", 22: "record_overflow",
    30: "decompression_failure", 40: "handshake_failure", 41: "no_certificate", 42: "bad_certificate", 43: "unsupported_certificate",
    44: "certificate_revoked", 45: "certificate_expired", 46: "certificate_unknown", 47: "illegal_parameter", 48: "unknown_ca",
    49: "access_denied", 50: "decode_error", 51: "decrypt_error", 52: "too_many_cids_requested", 60: "export_restriction",
    70: "protocol_version", 71: "insufficient_security", 80: "internal_error", 86: "inappropriate_fallback", 90: "user_canceled",
    100: "no_renegotiation", 109: "missing_extension", 110: "unsupported_extension", 111: "certificate_unobtainable",
    112: "unrecognized_name", 113: "bad_certificate_status_response", 114: "bad_certificate_hash_value", 115: "unknown_psk_identity",
    116: "certificate_required", 117: "general_error", 120: "no_application_protocol", 121: "ech_required",
}  # fmt: skip


def tls_attributes(
    failed: bool, duration_ns: int, version: int, outcome: int, alert: int, flags: int
) -> dict[str, str | int | float | bool]:
    """Attributes ``tls.*`` of a handshake.

    duration_ns: its length, or how long it went on before it failed. version: of the ServerHello (0x0303 is TLS 1.2), 0 is
    unknown. outcome: of OUTCOMES. alert: the description, where the outcome is one and it was not encrypted. flags: of FLAGS.
    """
    attributes: dict[str, str | int | float | bool] = {}
    if version:
        attributes["tls.version"] = _VERSIONS.get(version, f"{version:#06x}")
    if flags & FLAGS["resumed"]:
        attributes["tls.resumed"] = True
    if flags & FLAGS["retried"]:
        attributes["tls.hello_retry"] = True
    if flags & FLAGS["early"]:
        attributes["tls.early_data"] = True
    if not failed:
        return attributes
    attributes["tls.elapsed_ms"] = duration_ns / 1e6
    attributes["tls.outcome"] = _OUTCOME_NAMES.get(outcome, str(outcome))
    if outcome == OUTCOMES["alert"]:
        attributes["tls.alert"] = "encrypted" if flags & FLAGS["hidden"] else _ALERTS.get(alert, f"alert {alert}")
    if outcome != OUTCOMES["library"]:
        attributes["tls.side"] = "local" if flags & FLAGS["local"] else "peer"
    return attributes
