/* SPDX-License-Identifier: MIT */
/* What the TLS probes share with each other, and with libslo/kernel/events.py. */
#ifndef SLO_TLS_H
#define SLO_TLS_H

/* How a handshake failed; in slo_event.qtype. */
enum slo_tls_outcome {
	SLO_TLS_DONE = 0,
	SLO_TLS_ALERT = 1,   /* slo_event.rcode is its description, unless it was encrypted */
	SLO_TLS_CLOSED = 2,  /* the connection was closed, or reset (err says so), before the end */
	SLO_TLS_NOT_TLS = 3, /* the peer answered a ClientHello with something else */
	SLO_TLS_LIBRARY = 4, /* the library gave it up */
};

/* slo_event.flags of the TLS kinds. */
enum slo_tls_flag {
	SLO_TLS_F_RESUMED = 1 << 0,
	SLO_TLS_F_RETRIED = 1 << 1, /* the server asked for another ClientHello */
	SLO_TLS_F_LOCAL = 1 << 2,   /* this end failed it */
	SLO_TLS_F_HIDDEN = 1 << 3,  /* an encrypted alert: its description is not seen */
	SLO_TLS_F_EARLY = 1 << 4,   /* the client sent data before it had an answer (0-RTT) */
};

#endif
