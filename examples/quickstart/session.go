package main

import "net/http"

// sessionCookie is what from_cookies names in the Caddyfile.
const sessionCookie = "session"

// serveLogin sets the token as a cookie, as the login of a site does: no
// script can read it, no other site can have it sent, and only the gate's
// paths get it. A real one is Secure too, which needs HTTPS.
func serveLogin(w http.ResponseWriter, r *http.Request) {
	setSession(w, &http.Cookie{Value: r.PostFormValue("token")})
}

func serveLogout(w http.ResponseWriter, _ *http.Request) {
	setSession(w, &http.Cookie{MaxAge: -1})
}

func setSession(w http.ResponseWriter, c *http.Cookie) {
	c.Name, c.Path, c.HttpOnly, c.SameSite = sessionCookie, "/ws", true, http.SameSiteStrictMode
	http.SetCookie(w, c)
	w.WriteHeader(http.StatusNoContent)
}
