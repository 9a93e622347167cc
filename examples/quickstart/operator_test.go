package main

import (
	"fmt"
	"testing"
)

// userButton is a button on the card of a user in the operator's list.
func userButton(user, text string) string {
	return fmt.Sprintf(`#users > li[data-key^='["%s",'] .buttons button:nth-child(%d)`, user, map[string]int{"Message": 1, "Close all": 2, "Revoke": 3}[text])
}

// Everything that the operator can do, and what it does to the pages of two
// users.
func testOperator(t *testing.T, s *site) {
	bob, eve := s.open(t, "?sub=bob&exp=300&connect"), s.open(t, "?sub=eve&exp=300&carrier=query&connect")
	bob.says("result", "Connected")
	eve.says("result", "Connected")
	bob.says("users", "bob", "eve", "1 of 5", "this page")

	t.Run("messages", func(t *testing.T) {
		bob.set("#say-text", "to everybody")
		bob.press("#say")
		bob.says("log", "to everybody")
		eve.says("log", "to everybody")
		bob.says("operator-result", "Sent to")

		bob.press(userButton("eve", "Message"))
		bob.wait(`document.activeElement.id === "say-text" && document.getElementById("say-to").selectedOptions[0].textContent === "eve"`)
		bob.set("#say-text", "to eve alone")
		bob.press("#say")
		bob.says("operator-result", "Sent to 1 socket.")
		eve.says("log", "to eve alone")
		bob.set("#say-to", "")
		bob.set("#say-text", "and all again")
		bob.press("#say")
		bob.says("log", "and all again")
		if eval[bool](bob, `document.getElementById("log").innerText.includes("to eve alone")`) {
			t.Error("bob has heard it too")
		}
	})

	t.Run("close", func(t *testing.T) {
		bob.shot("operator")
		bob.press(`#users > li[data-key^='["eve",'] .sockets button`)
		eve.says("result", "Closed with 1008", "closed by the administrator")
		bob.says("operator-result", "Closed 1 socket with 1008.")
		bob.wait(`!document.getElementById("users").innerText.includes("eve")`)
		bob.wait(`document.activeElement.id === "sockets-title"`) // not lost with the button
		eve.shot("closed-by-operator")

		eve.press("#connect")
		eve.says("result", "Connected")
		eve.press("#six")
		eve.says("six-result", "4 sockets let in, 2 refused")
		bob.says("users", "5 of 5")
		bob.press(userButton("eve", "Close all"))
		bob.says("operator-result", "Closed 5 sockets of eve.")
		eve.says("result", "Closed with 1008")
		eve.says("six-list", "closed: 1008")
	})

	t.Run("revoke a user", func(t *testing.T) {
		eve.press("#connect")
		eve.says("result", "Connected")
		bob.press(userButton("eve", "Revoke"))
		eve.says("result", "Closed with 3000", "token revoked")
		bob.says("operator-result", "eve is revoked. 1 socket closed with 3000.")
		bob.says("revocations", "user eve")
		eve.press("#connect")
		eve.says("evidence", "revoked, which stands for 401", `error="invalid_token"`)
		eve.shot("revoked")
		bob.press("#revocations button")
		bob.says("operator-result", "Lifted: user eve may come in again.")
		bob.wait(`document.activeElement.id === "revocations-title"`)
		eve.press("#connect")
		eve.says("result", "Connected")
	})

	t.Run("revoke a token", func(t *testing.T) {
		eve.press("#revoke-token")
		eve.says("result", "Closed with 3000", "token revoked")
		eve.says("operator-result", "Token revoked. 1 socket closed with 3000.")
		eve.says("revocations", "token ")
		eve.press("#connect")
		eve.says("evidence", "revoked, which stands for 401")
		eve.press("#mint") // another token of the same user
		eve.wait(`!document.getElementById("revocations").innerText.includes(JSON.parse(document.getElementById("claims").textContent).jti)`)
		eve.press("#connect")
		eve.says("result", "Connected")
		eve.press("#revocations button")
		eve.says("operator-result", "may come in again")
		eve.set("#token", "of no use")
		eve.press("#revoke-token")
		eve.says("operator-result", "no jti")
		eve.press("#disconnect")
	})
}
